"""Reads the fine-tuning platform's JSON request into a run's configuration."""
