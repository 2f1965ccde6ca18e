"""How fast the CUDA path trains on one GPU, without network and Ray."""
