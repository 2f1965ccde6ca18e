"""A chat template that the configuration brings: the text of one, or the path of a file that holds one."""

from __future__ import annotations

from pathlib import Path

from ..paths import read_small_file


def is_template(text: str) -> bool:
    """Whether a text is a template of Jinja, and not the path of one."""
    return "{%" in text or "{{" in text


def read_template(path: str, beside: Path | None) -> str:
    """The template in a file. The working directory comes first, then `beside`, the configuration's folder.

    Raises ValueError, whose message says what is wrong with the file.
    """
    text = read_small_file(path, beside, "gemma, tokenizer, or the path of a Jinja file", "a chat template")
    try:
        content = text.decode()
    except UnicodeDecodeError:
        raise ValueError(f"{path!r} is not UTF-8 text; give a chat template in Jinja") from None
    if not is_template(content):
        raise ValueError(f"{path!r} holds no template of Jinja (no {{% or {{{{); give a chat template")
    return content
