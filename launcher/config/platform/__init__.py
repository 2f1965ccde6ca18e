"""The fine-tuning platform's JSON request, read as it stands into a run's configuration."""
