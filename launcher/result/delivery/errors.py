"""What a delivery may fail with."""

from __future__ import annotations


class DeliveryError(RuntimeError):
    """The result could not be taken where it was asked to go. It lies whole where it was published."""
