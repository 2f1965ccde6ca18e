"""The final artefacts of a run: the adapter of its last verified checkpoint, ready for peft, in a folder of its own."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from gemfleet.train.checkpoint import ADAPTER_FILE, CONFIG_FILE, TRAINER_STATE_FILE

PUBLISHED = ("adapter_config.json", ADAPTER_FILE, TRAINER_STATE_FILE, CONFIG_FILE)
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)


def publish(checkpoint: Path, model_folder: Path, output: Path) -> Path:
    """Copy the adapter, its history and the tokenizer into `output`, which appears whole by one rename. Returns it."""
    output.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".output-", dir=output.parent))
    staging.chmod(0o755)
    for name in PUBLISHED:
        shutil.copyfile(checkpoint / name, staging / name)
    for name in TOKENIZER_FILES:
        if (model_folder / name).is_file():
            shutil.copyfile(model_folder / name, staging / name)
    if output.exists():
        shutil.rmtree(output)
    staging.rename(output)
    return output
