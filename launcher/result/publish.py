"""Writes the result of a run into one folder, in the layout of docs/platform.md. It holds no pickle."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gemfleet.cluster.redaction import redact
from gemfleet.launcher.config.load import read_mapping
from gemfleet.launcher.config.schema import OutputConfig
from gemfleet.train.checkpoint.state import ADAPTER_FILE, CONFIG_FILE, TRAINER_STATE_FILE
from gemfleet.train.config.train_file import is_platform_request
from gemfleet.train.data.shapes.choice import CHATS
from gemfleet.train.model.comparison import Comparison
from gemfleet.train.model.merge import INDEX_FILE, Progress, merge_adapter
from gemfleet.train.model.starting_adapter import ADAPTER_CONFIG_FILE

from .card.loss_plot import loss_plot
from .card.model_card import COMPARISON_FILE, MERGED_FOLDER, CardFacts, model_card
from .chosen import Picked
from .gguf import GGUF_FILE, write_gguf
from .prompt_format import kept_format
from .public_names import base_reference, copy_board, without_paths
from .tokenizer_files import copy_companions, copy_processor

PUBLISHED = (ADAPTER_CONFIG_FILE, ADAPTER_FILE, TRAINER_STATE_FILE, CONFIG_FILE)
KEPT_FILE = "result.json"  # in a run's folder: what a result needs beside a checkpoint, see `again.py`
REQUEST_FILE = "cheetah-fine-tuning-config.json"
LFS_PATTERNS = ("*.safetensors", "*.gguf", "*tfevents*", "tokenizer.json", "tokenizer.model", "*.parquet")
NOT_PUBLISHED = frozenset({"manifest.json"})
# Large files that tokenizers and the merge write. They hold no paths.
NOT_CLEANED = frozenset({"tokenizer.json", INDEX_FILE})


@dataclass(frozen=True)
class Publication:
    """What to publish.

    run_folder: has `config.*` as given, `runs/` and perhaps `predictions/`
    checkpoint: the folder of the verified checkpoint
    base:       what the person called the base model
    facts:      see `CardFacts`
    names:      what to write in place of paths of this machine
    picked:     why that checkpoint, and the history of the whole run; None: as far as the checkpoint knows it
    """

    run_folder: Path
    checkpoint: Path
    model_folder: Path
    base: str
    output: OutputConfig
    facts: Mapping[str, Any] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    picked: Picked | None = None

    @property
    def template(self) -> str:
        """What wrote the training data's chats, as `train.data.chat_template` says it; empty if they were no chats."""
        return str(self.facts.get("chat_template", "gemma")) if self.facts.get("format") in CHATS else ""


# Compares the forms in a folder that is not published yet with the training loop. Raises where they differ.
Compare = Callable[[Path], Comparison | None]


def publish(publication: Publication, progress: Progress | None = None, compare: Compare | None = None) -> Path:
    """Write everything into `<run folder>/output`, which one rename makes appear. Returns that folder.

    compare: called before the folder appears; what it raises leaves an older result as it is
    """
    with output_folder(publication.run_folder) as staging:
        _write_all(publication, staging, progress, compare)
    return publication.run_folder / "output"


@contextmanager
def output_folder(run_folder: Path) -> Iterator[Path]:
    """Give the block a new folder, which becomes `<run folder>/output` if the block ends well."""
    target = run_folder / "output"
    staging = Path(tempfile.mkdtemp(prefix=".output-", dir=run_folder))
    try:
        yield staging
        if target.exists():
            shutil.rmtree(target)
        staging.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _write_all(publication: Publication, folder: Path, progress: Progress | None, compare: Compare | None) -> None:
    copy_adapter(publication, folder)
    copy_checkpoint(publication, folder / publication.checkpoint.name)
    copy_request(publication.run_folder, folder)
    if publication.output.tensorboard and (publication.run_folder / "runs").is_dir():
        copy_board(publication.run_folder / "runs", folder / "runs")
    if has_answers(publication):
        shutil.copytree(publication.run_folder / "predictions", folder, dirs_exist_ok=True)
    _write_formats(publication, folder, progress, compare)
    write_attributes(folder)
    history = json.loads((folder / TRAINER_STATE_FILE).read_text())["log_history"]
    chosen = publication.picked.chosen if publication.picked else None
    (folder / "loss.svg").write_text(loss_plot(history, chosen.step if chosen else None))
    prompts = kept_format(publication.run_folder)
    card = CardFacts(folder, publication.base, publication.facts, chosen, prompts)
    (folder / "README.md").write_text(model_card(card))


def kept(run_folder: Path) -> dict[str, Any]:
    """What is kept of a run for its result; empty where there is nothing."""
    try:
        content = json.loads((run_folder / KEPT_FILE).read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def has_answers(publication: Publication) -> bool:
    """Whether the run has answers of the checkpoint that is published."""
    if not (publication.run_folder / "predictions").is_dir() or publication.picked is None:
        return (publication.run_folder / "predictions").is_dir()
    newest = json.loads(publication.picked.history)["global_step"]
    predicted: int = kept(publication.run_folder).get("predicted", newest)
    return predicted == publication.picked.chosen.step


def _write_formats(publication: Publication, folder: Path, progress: Progress | None, compare: Compare | None) -> None:
    """Write the other forms beside the adapter, and compare all. A GGUF file is made of a merged model."""
    formats, merged = publication.output.formats, folder / MERGED_FOLDER
    if len(formats) > 1:
        write_merged(publication, merged, progress)
    if compare is not None and (comparison := compare(folder)) is not None:
        (folder / COMPARISON_FILE).write_text(json.dumps(comparison.to_dict(), indent=2) + "\n")
    if "gguf" in formats:
        write_gguf(merged, folder / GGUF_FILE)
    if "merged" not in formats:
        shutil.rmtree(merged, ignore_errors=True)


def copy_adapter(publication: Publication, folder: Path) -> None:
    """Write the adapter, history, configuration and tokenizer into an existing folder."""
    for name in PUBLISHED:
        shutil.copyfile(publication.checkpoint / name, folder / name)
    if publication.picked is not None:
        (folder / TRAINER_STATE_FILE).write_bytes(publication.picked.history)
    copy_companions(publication.model_folder, folder, publication.output.padding_side, publication.template)
    if publication.facts.get("pictures"):
        copy_processor(publication.model_folder, folder)
    clean_folder(publication, folder)


def write_merged(publication: Publication, folder: Path, progress: Progress | None = None) -> None:
    """Write the base with the adapter added, as `from_pretrained` loads it, and the processor of a multimodal base."""
    merge_adapter(publication.model_folder, publication.checkpoint, folder, progress)
    copy_companions(publication.model_folder, folder, publication.output.padding_side, publication.template)
    copy_processor(publication.model_folder, folder)
    clean_folder(publication, folder)


def clean_folder(publication: Publication, folder: Path) -> None:
    """Rewrite the JSON files of `folder` without paths of this machine and without secrets."""
    for path in folder.glob("*.json"):
        if path.name not in NOT_CLEANED:
            text = path.read_text(encoding="utf-8")
            published = public_json(publication, path.name, text)
            if published != text:
                path.write_text(published, encoding="utf-8")


def public_json(publication: Publication, name: str, text: str) -> str:
    """What the JSON file `name` says when it is published: `text` itself where nothing in it has to change.

    The adapter names its base as the person did.
    """
    content = json.loads(text)
    cleaned = without_paths(content, publication.names)
    if name == ADAPTER_CONFIG_FILE:
        named = redact(cleaned) | {"base_model_name_or_path": base_reference(publication.base)}
        return json.dumps(named, indent=2) + "\n"
    if name == CONFIG_FILE and (hidden := redact(cleaned)) != cleaned:
        return json.dumps(hidden, indent=2) + "\n"
    return text if cleaned == content else json.dumps(cleaned, indent=2, ensure_ascii=False) + "\n"


def write_attributes(folder: Path) -> None:
    """Write `.gitattributes`, which names the files that a repository keeps in LFS."""
    lines = [f"{pattern} filter=lfs diff=lfs merge=lfs -text" for pattern in LFS_PATTERNS]
    (folder / ".gitattributes").write_text("\n".join(lines) + "\n")


def copy_checkpoint(publication: Publication, target: Path) -> None:
    """Write the whole checkpoint, from which training can continue, with the tokenizer and a short card."""
    target.mkdir()
    for path in sorted(publication.checkpoint.iterdir()):
        if path.is_file() and path.name not in NOT_PUBLISHED:
            shutil.copyfile(path, target / path.name)
    copy_companions(publication.model_folder, target, publication.output.padding_side, publication.template)
    clean_folder(publication, target)
    (target / "README.md").write_text(
        f"# {target.name}\n\nThe full state of the run after that step: adapter, optimizer "
        "(`optimizer.safetensors`), history (`trainer_state.json`) and position in the data (`data_state.json`). The "
        "learning rate and every random stream are functions of the step and the seed in it, so no scheduler or "
        "generator state is kept. The model card is one folder up.\n"
    )


def copy_request(run_folder: Path, folder: Path) -> None:
    """Copy the platform's request byte for byte, if the run was started from one."""
    for path in run_folder.glob("config.*"):
        if path.name != "config.resolved.yaml" and is_platform_request(read_mapping(path)):
            shutil.copyfile(path, folder / REQUEST_FILE)
