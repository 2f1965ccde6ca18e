"""Checkpoints come home: a store on the head, its commit protocol, and its filesystem for Ray Train."""
