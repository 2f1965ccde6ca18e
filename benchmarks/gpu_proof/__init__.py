"""The proof that the CUDA path computes what it should, and how fast: parts that run in minutes on one real GPU."""
