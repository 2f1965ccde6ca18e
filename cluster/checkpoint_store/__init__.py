"""Checkpoints come home: a store pinned to the head, its commit protocol, and its filesystem for Ray Train."""
