"""The error of deliveries."""

from __future__ import annotations


class DeliveryError(RuntimeError):
    """The result could not be delivered. It stays whole in the run's folder."""
