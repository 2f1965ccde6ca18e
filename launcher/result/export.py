"""Copies a checkpoint out of a run's folder: as it is, as an adapter for peft, or merged into its base model."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gemfleet.cluster.checkpoint_store.manifest import MANIFEST_FILE, Manifest
from gemfleet.cluster.checkpoint_store.shelf import Shelf
from gemfleet.cluster.errors import StoreError
from gemfleet.cluster.private import as_the_user_has_it

from .card.model_card import MERGED_FOLDER
from .gguf import GGUF_FILE, check_converter, write_gguf
from .publish import Publication, copy_adapter, write_merged


def verified_checkpoint(shelf: Shelf, run_id: str, step: int | None) -> tuple[Path, Manifest]:
    """The folder and the manifest of a checkpoint, after its verification.

    step: None: the newest one that verifies. Raises StoreError when it is damaged, or when there is none.
    """
    known = {manifest.step: manifest for manifest in shelf.manifests()}
    if step is None:
        newest, damaged = shelf.newest_verified()
        if newest is None:
            raise StoreError(f"{run_id} has no checkpoint that verifies: {'; '.join(damaged) or 'none at all'}")
        return shelf.at_hand(newest.step), newest
    if step not in known:
        steps = ", ".join(map(str, sorted(known))) or "none"
        raise StoreError(f"{run_id} has no checkpoint of step {step}; it has: {steps}")
    folder = shelf.at_hand(step)
    known[step].verify(folder)
    return folder, known[step]


def pull(checkpoint: Path, manifest: Manifest, destination: Path) -> Path:
    """Copy the whole checkpoint to `destination`. The copy appears there after its hashes are verified."""
    with appears_whole(destination) as staging, _still_there(checkpoint):
        for entry in manifest.files:
            (staging / entry.path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(checkpoint / entry.path, staging / entry.path)
        shutil.copyfile(checkpoint / MANIFEST_FILE, staging / MANIFEST_FILE)
        manifest.verify(staging)
    return destination


def export_adapter(publication: Publication, destination: Path) -> Path:
    """Write the adapter, tokenizer and history, as peft loads them."""
    with appears_whole(destination) as staging, _still_there(publication.checkpoint):
        copy_adapter(publication, staging)
    return destination


def export_merged(publication: Publication, destination: Path) -> Path:
    """Write the base model with the adapter added to its weights, as transformers loads it."""
    with appears_whole(destination) as staging:
        write_merged(publication, staging)
    return destination


def export_gguf(publication: Publication, destination: Path) -> Path:
    """Write the merged model as a GGUF file into a new folder, by llama.cpp's converter."""
    check_converter(["gguf"], publication.model_folder)
    with appears_whole(destination) as staging:
        write_merged(publication, staging / MERGED_FOLDER)
        write_gguf(staging / MERGED_FOLDER, staging / GGUF_FILE)
        shutil.rmtree(staging / MERGED_FOLDER)
    return destination


EXPORTS: dict[str, Callable[[Publication, Path], Path]] = {
    "adapter": export_adapter,
    "merged": export_merged,
    "gguf": export_gguf,
}


@contextmanager
def appears_whole(destination: Path) -> Iterator[Path]:
    """Give the block a new folder to fill. Rename it to `destination` if the block ends well, else remove it."""
    _refuse_existing(destination)
    destination.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{destination.name}-", dir=destination.parent))
    try:
        with as_the_user_has_it():
            (staging / "whole").mkdir()
            yield staging / "whole"
        (staging / "whole").rename(destination)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def _still_there(checkpoint: Path) -> Iterator[None]:
    """Raise StoreError if the checkpoint is removed while the block copies it: a run may keep only its newest ones."""
    try:
        yield
    except FileNotFoundError as error:
        if checkpoint.exists():
            raise
        raise StoreError(
            f"{checkpoint.name} was removed meanwhile by its run, which keeps its newest; repeat"
        ) from error


def _refuse_existing(destination: Path) -> None:
    if destination.exists():
        raise StoreError(f"{destination} exists already; give the name of a new folder")
