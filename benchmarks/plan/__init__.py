"""Predicted against measured memory of training on a CPU."""
