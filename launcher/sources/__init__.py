"""Repositories and object stores that hold a model or a data set, brought to the head node."""
