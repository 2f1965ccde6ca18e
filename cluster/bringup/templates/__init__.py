"""The same cluster for other ways to start one: each template is a pure function of the description."""
