"""Asks whether the model or data set of a Hugging Face id exists, without fetching it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import UserError
from .resolve import HUB_FILES

ANSWER_SECONDS = 10.0


def cached_model(name: str) -> Path | None:
    """The folder of a hub model that this machine has fetched; None if it has not."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=HUB_FILES, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, HfHubHTTPError, OSError):
        return None


def look_up_model(name: str) -> None:
    """Raises UserError if the hub has no model of that id that this user may read."""
    from huggingface_hub import HfApi

    _look_up(name, "train.model", "a folder", HfApi().model_info)


def look_up_data(name: str) -> None:
    """Raises UserError if this machine has not fetched the data set of that id, and the user may not read it."""
    from datasets import config
    from huggingface_hub import HfApi

    if not (Path(config.HF_DATASETS_CACHE) / name.replace("/", "___")).is_dir():
        _look_up(name, "train.data", "a data file", HfApi().dataset_info)


def _look_up(name: str, field: str, what: str, ask: Callable[..., Any]) -> None:
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    try:
        ask(name, timeout=ANSWER_SECONDS)
    except GatedRepoError as error:
        raise UserError(f"{field} {name!r} is gated; accept its terms on Hugging Face and set HF_TOKEN") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UserError(f"{field} {name!r} is neither {what} here nor a Hugging Face id that exists") from error
    except Exception as error:  # a network causes many kinds in the libraries below
        raise UserError(
            f"{field} {name!r} is not {what} here, and Hugging Face cannot be reached; "
            "check the path, or the network of the head node"
        ) from error
