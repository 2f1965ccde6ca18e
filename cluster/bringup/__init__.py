"""Brings a Ray cluster up and down from one typed description."""
