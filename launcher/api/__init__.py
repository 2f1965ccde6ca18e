"""The status API: an HTTP view of the registry on the head, with a dashboard and Prometheus metrics."""
