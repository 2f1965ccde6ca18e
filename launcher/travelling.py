"""Which files of a configuration's folder go with a submitted job."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from gemfleet.train.errors import UserError

PACKAGE_LIMIT_BYTES = 100 * 2**20  # Ray's cap for a job's working directory
FILE_LIMIT_BYTES = 10 * 2**20
IGNORE_FILE = ".gemfleetignore"
LEFT_OUT_FOLDERS = frozenset(
    {".git", ".hg", ".venv", "venv", "node_modules", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache"}
)
LEFT_OUT_SUFFIXES = frozenset({".safetensors", ".gguf", ".bin", ".pt", ".pth", ".ckpt"})


class Luggage:
    """What travels of `folder`: no weights, no repositories, nothing over 10 MiB, nothing that its ignore file names.

    The ignore file has `.gitignore`'s syntax. `.gitignore` itself is not obeyed, and stays: it often names the data.
    """

    def __init__(self, folder: Path) -> None:
        """UserError where the ignore file has a line that is no pattern."""
        import pathspec

        self.folder = folder
        ignore = folder / IGNORE_FILE
        lines = ignore.read_text(encoding="utf-8").splitlines() if ignore.is_file() else []
        try:
            self._ignored = pathspec.GitIgnoreSpec.from_lines(lines)
        except ValueError as error:
            raise UserError(f"{ignore} has a line that is no pattern: {error}; write it as in a .gitignore") from None

    def files(self) -> Iterator[Path]:
        """In the order of their names."""
        for root, folders, files in os.walk(self.folder):
            inside = [name for name in folders if name not in LEFT_OUT_FOLDERS]
            folders[:] = sorted(name for name in inside if not self._ignores(Path(root, name), "/"))
            for name in sorted(files):
                if self.why_not(Path(root, name)) is None:
                    yield Path(root, name)

    def why_not(self, path: Path) -> str | None:
        """Why this path stays here; None when it travels."""
        if not path.is_file() or path.name in (".gitignore", IGNORE_FILE):
            return "it is no file of the run"
        if path.suffix.lower() in LEFT_OUT_SUFFIXES or path.stat().st_size > FILE_LIMIT_BYTES:
            return "weights and files over 10 MiB stay here"
        return f"{IGNORE_FILE} names it" if self._ignores(path) else None

    def copy_to(self, package: Path) -> None:
        """Copy what travels, or raise UserError naming the largest files when it is more than Ray accepts."""
        files = list(self.files())
        total = sum(path.stat().st_size for path in files)
        if total > PACKAGE_LIMIT_BYTES:
            largest = sorted(files, key=lambda path: path.stat().st_size, reverse=True)[:3]
            names = ", ".join(f"{p.relative_to(self.folder)} ({p.stat().st_size / 2**20:.0f} MiB)" for p in largest)
            raise UserError(
                f"the folder {self.folder} holds {total / 2**20:.0f} MiB that would travel with the job; Ray accepts "
                f"100 MiB; name what the run does not need in {IGNORE_FILE} (as in a .gitignore), or move the "
                f"configuration to a folder of its own; the largest files: {names}"
            )
        for path in files:
            target = package / path.relative_to(self.folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)

    def _ignores(self, path: Path, end: str = "") -> bool:
        return bool(self._ignored.match_file(path.relative_to(self.folder).as_posix() + end))
