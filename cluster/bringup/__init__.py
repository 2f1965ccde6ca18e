"""Bringing a Ray cluster up and down: one typed description, and what is made of it."""
