"""Writes docs/platform.md from the table: `python -m gemfleet.launcher.config.platform.document > docs/platform.md`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gemfleet.launcher.config.schema import LaunchConfig
from gemfleet.train.config.errors import locate

from .keys.key import Key
from .keys.table import SECTIONS

HEAD = """# The platform's request

`gemfleet train request.json` reads the fine-tuning platform's JSON as it stands; `gemfleet convert request.json >
run.yaml` writes our own format from it, with the request's key beside each line. This page is written from the table in
`launcher/config/platform/keys/`, which the conversion itself reads; a test compares the two.

- `None`, `"None"`, `"null"` and `""` mean that there is no value; `"true"`, `"false"` and numbers written as texts are
  read as meant.
- All problems are named together, each with the key, the value and what to do. A key that is not in the table is one.
- A global batch is `per_device_train_batch_size` times `gradient_accumulation`, whatever the number of ranks.
- The result: `adapter_config.json`, `adapter_model.safetensors`, tokenizer files, `special_tokens_map.json`,
  `generation_config.json`, whose ends include `<end_of_turn>`,
  `comparison.json`, `checkpoint-<step>/`, `runs/` with TensorBoard events, `README.md` with the loss plot,
  `training_config.json` in place of a pickle, and the request itself as `cheetah-fine-tuning-config.json`. No file is a
  pickle.
- Addresses of repositories are `https://`, `ssh://` or `user@host:path`. `file://` is taken only below the folders that
  `$GEMFLEET_SOURCE_ROOTS` names (separated by `:`). Credentials come from the SSH agent or, for https, from
  `$GEMFLEET_GIT_USER` and `$GEMFLEET_GIT_TOKEN`, which go to the host `$GEMFLEET_GIT_HOST` alone; an address with a
  password in it is refused. Over ssh the host's key has to be known: to the user, or to the file that
  `$GEMFLEET_GIT_KNOWN_HOSTS` names.
- Object stores are `s3://bucket/folder` and `gs://bucket/folder`, for model, data and result. Credentials and region
  come from the environment (`AWS_…`, `GOOGLE_APPLICATION_CREDENTIALS`); `$AWS_ENDPOINT_URL` names a store of your own.
  What is there is copied once to the head, and anew when it has changed; pickles are left out. A result goes to the
  folder named after the experiment; `gemfleet-manifest.json`, with every file's size and sha256, is written last.
- `examples/data/korean-finance.jsonl` is a small data set of this kind: 211 questions about money in Korean, with a
  `text` column in Gemma's turns. Definitions are written by hand; the sums among them are computed.
- A result that could not be delivered stays whole below `$GEMFLEET_HOME`; `gemfleet push RUN` tries again.
"""


def document() -> str:
    """The text of docs/platform.md."""
    return "\n".join([HEAD, *(line for title, keys in SECTIONS.items() for line in _section(title, keys))])


def _section(title: str, keys: tuple[Key, ...]) -> Iterator[str]:
    yield f"## {title}\n"
    yield "| key | meant | given as | becomes | without it | effect |"
    yield "|---|---|---|---|---|---|"
    for key in keys:
        becomes = f"`{key.target}`" if key.target else {"unused": "unused"}.get(key.how, "checked only")
        cells = [f"`{key.name}`", key.meant, key.reads.accepts() or "none", becomes, _default(key), key.effect]
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    yield ""


def _default(key: Key) -> str:
    if key.default is not None:
        return f"`{_word(key.default)}`"
    _, _, field = locate(key.target.split("."), LaunchConfig) if key.target else ("", None, None)
    if field is None or field.is_required():
        return "-"
    return f"`{_word(field.get_default(call_default_factory=True))}`"


def _word(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(_word, value))
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


if __name__ == "__main__":
    print(document(), end="")
