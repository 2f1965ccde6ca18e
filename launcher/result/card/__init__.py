"""Writes the published folder's README.md, and the picture of losses in it."""
