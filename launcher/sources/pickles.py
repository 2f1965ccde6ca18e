"""Suffixes of files that may be pickles. Nothing here reads pickles, so nothing fetches or keeps them."""

from __future__ import annotations

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy")
