"""The actor on the head that keeps features of pictures. It imports torch, which its clients need not."""

from __future__ import annotations

from pathlib import Path

from gemfleet.cluster.head import start_on_head
from gemfleet.train.model.vision.kept import FeatureFolder, feature_folder

from .head_features import HeadFeatures


def start_features(run_id: str, limit_bytes: int) -> HeadFeatures:
    """Start a run's actor over the head's features. It ends with the driver."""
    folder = str(feature_folder().folder)
    return HeadFeatures(start_on_head(_Keeper, f"gemfleet-features-{run_id}", folder, limit_bytes), limit_bytes)


class _Keeper(FeatureFolder):
    """The actor."""

    def __init__(self, folder: str, limit_bytes: int) -> None:
        super().__init__(Path(folder), limit_bytes)
