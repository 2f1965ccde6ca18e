"""A pretended NVIDIA GPU: torch's CUDA build runs on it, kernels do nothing, all that the host does is real."""
