"""The same cluster for other launchers. Each template is a pure function of the description."""
