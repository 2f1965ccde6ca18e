"""Fetches models and data from git repositories and object stores to the head node."""
