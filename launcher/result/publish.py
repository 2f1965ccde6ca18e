"""The final artefacts of a run, in one folder with the layout of docs/platform.md: nothing in it is a pickle."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gemfleet.cluster.redaction import redact
from gemfleet.launcher.config.load import read_mapping
from gemfleet.launcher.config.platform.request import is_platform_request
from gemfleet.launcher.config.schema import OutputConfig
from gemfleet.train.checkpoint.state import ADAPTER_FILE, CONFIG_FILE, TRAINER_STATE_FILE
from gemfleet.train.model.merge import INDEX_FILE, Progress, merge_adapter

from .loss_plot import loss_plot
from .model_card import CardFacts, model_card
from .public_names import base_reference, clean_json, copy_board
from .tokenizer_files import copy_companions, copy_processor

PUBLISHED = ("adapter_config.json", ADAPTER_FILE, TRAINER_STATE_FILE, CONFIG_FILE)
REQUEST_FILE = "cheetah-fine-tuning-config.json"
LFS_PATTERNS = ("*.safetensors", "*tfevents*", "tokenizer.json", "tokenizer.model", "*.parquet")
NOT_PUBLISHED = frozenset({"manifest.json"})
# Written by tokenizers and by the merge, and too large to be read for nothing.
NOT_CLEANED = frozenset({"tokenizer.json", INDEX_FILE})


@dataclass(frozen=True)
class Publication:
    """What there is to publish.

    run_folder: with `config.*` as given, `runs/` and perhaps `predictions/`
    checkpoint: the verified one that is published
    base:       what the person called the base model
    facts:      what the card says beyond what lies in the checkpoint; `format`: of the rows trained on
    names:      what to write in place of paths of this machine
    """

    run_folder: Path
    checkpoint: Path
    model_folder: Path
    base: str
    output: OutputConfig
    facts: Mapping[str, Any] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)

    @property
    def chat(self) -> bool:
        """Whether it was trained on chats, in Gemma's turns."""
        return self.facts.get("format") == "messages"


def publish(publication: Publication, progress: Progress | None = None) -> Path:
    """Write everything into `<run folder>/output`, which appears whole by one rename. Returns it."""
    with output_folder(publication.run_folder) as staging:
        _write_all(publication, staging, progress)
    return publication.run_folder / "output"


@contextmanager
def output_folder(run_folder: Path) -> Iterator[Path]:
    """A new folder that becomes `<run folder>/output` when the block ends well; until then an older one stays."""
    target = run_folder / "output"
    staging = Path(tempfile.mkdtemp(prefix=".output-", dir=run_folder))
    try:
        yield staging
        if target.exists():
            shutil.rmtree(target)
        staging.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _write_all(publication: Publication, folder: Path, progress: Progress | None) -> None:
    copy_adapter(publication, folder)
    copy_checkpoint(publication, folder / publication.checkpoint.name)
    copy_request(publication.run_folder, folder)
    if publication.output.tensorboard and (publication.run_folder / "runs").is_dir():
        copy_board(publication.run_folder / "runs", folder / "runs")
    if (publication.run_folder / "predictions").is_dir():
        shutil.copytree(publication.run_folder / "predictions", folder, dirs_exist_ok=True)
    if publication.output.merge:
        write_merged(publication, folder / "merged", progress)
    write_attributes(folder)
    history = json.loads((folder / TRAINER_STATE_FILE).read_text())["log_history"]
    (folder / "loss.svg").write_text(loss_plot(history))
    (folder / "README.md").write_text(model_card(CardFacts(folder, publication.base, publication.facts)))


def copy_adapter(publication: Publication, folder: Path) -> None:
    """Adapter, history and configuration with the tokenizer, in a folder that is there."""
    for name in PUBLISHED:
        shutil.copyfile(publication.checkpoint / name, folder / name)
    copy_companions(publication.model_folder, folder, publication.output.padding_side, publication.chat)
    clean_folder(publication, folder)


def write_merged(publication: Publication, folder: Path, progress: Progress | None = None) -> None:
    """The base with the adapter added, ready for `from_pretrained`; of a multimodal one with its processor."""
    merge_adapter(publication.model_folder, publication.checkpoint, folder, progress)
    copy_companions(publication.model_folder, folder, publication.output.padding_side, publication.chat)
    copy_processor(publication.model_folder, folder)
    clean_folder(publication, folder)


def clean_folder(publication: Publication, folder: Path) -> None:
    """No path of this machine and no secret stays in settings; the adapter names its base as the person did."""
    for path in folder.glob("*.json"):
        if path.name not in NOT_CLEANED:
            clean_json(path, publication.names)
        if path.name in ("adapter_config.json", CONFIG_FILE):
            path.write_text(without_secrets(path.read_text()))
    path = folder / "adapter_config.json"
    if path.is_file():
        content = json.loads(path.read_text()) | {"base_model_name_or_path": base_reference(publication.base)}
        path.write_text(json.dumps(content, indent=2) + "\n")


def write_attributes(folder: Path) -> None:
    """Which files a repository keeps in LFS."""
    lines = [f"{pattern} filter=lfs diff=lfs merge=lfs -text" for pattern in LFS_PATTERNS]
    (folder / ".gitattributes").write_text("\n".join(lines) + "\n")


def copy_checkpoint(publication: Publication, target: Path) -> None:
    """The full state, ready to go on from, with the tokenizer and a short card beside it."""
    target.mkdir()
    for path in sorted(publication.checkpoint.iterdir()):
        if path.is_file() and path.name not in NOT_PUBLISHED:
            shutil.copyfile(path, target / path.name)
    copy_companions(publication.model_folder, target, publication.output.padding_side, publication.chat)
    clean_folder(publication, target)
    (target / "README.md").write_text(
        f"# {target.name}\n\nThe full state of the run after that step: adapter, optimizer "
        "(`optimizer.safetensors`), history (`trainer_state.json`) and position in the data (`data_state.json`). The "
        "learning rate and every random stream are functions of the step and the seed in it, so no scheduler or "
        "generator state is kept. The model card is one folder up.\n"
    )


def without_secrets(text: str) -> str:
    """A JSON text with what looks like a credential hidden; as it is where nothing does."""
    content = json.loads(text)
    hidden = redact(content)
    return text if hidden == content else json.dumps(hidden, indent=2) + "\n"


def copy_request(run_folder: Path, folder: Path) -> None:
    """The platform's request byte for byte, where the run was started from one."""
    for path in run_folder.glob("config.*"):
        if path.name != "config.resolved.yaml" and is_platform_request(read_mapping(path)):
            shutil.copyfile(path, folder / REQUEST_FILE)
