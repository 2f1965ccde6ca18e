"""Files that may be pickles: nothing here reads them, so nothing fetches or keeps them either."""

from __future__ import annotations

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy")
