"""Copies a published folder to the place that the configuration names. Never changes the folder itself."""
