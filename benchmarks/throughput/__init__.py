"""Tokens per second of training, and how much of the device they use."""
