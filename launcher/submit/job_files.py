"""Decides which files of a configuration's folder travel with a submitted job."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from gemfleet.train.errors import UserError

PACKAGE_LIMIT_BYTES = 100 * 2**20  # Ray's cap for a job's working directory
FILE_LIMIT_BYTES = 10 * 2**20
NAMED_AT_MOST = 20
HIDDEN = "hidden"
IGNORE_FILE = ".gemfleetignore"
LEFT_OUT_FOLDERS = frozenset(
    {".git", ".hg", ".venv", "venv", "node_modules", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache"}
)
LEFT_OUT_SUFFIXES = frozenset({".safetensors", ".gguf", ".bin", ".pt", ".pth", ".ckpt"})


# Names of files in which programs keep credentials. Hidden files stay in any case.
CREDENTIALS = (
    *("*.pem", "*.key", "*.p12", "*.pfx", "*.pkcs12", "*.jks", "*.keystore", "*.kdbx", "*.ppk", "*.gpg", "*.asc"),
    *("*.env", "*.ovpn", "*.token", "token", "token.txt", "id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", "*_rsa"),
    *("credentials", "credentials.*", "*credentials.json", "client_secret*.json", "service[-_]account*.json", "_netrc"),
    *("*_ed25519", "secret", "secrets", "secret.*", "secrets.*", "kubeconfig*", "*.kubeconfig", "passwd", "htpasswd"),
    *("password.txt", "passwords.txt", "terraform.tfstate*", "*.tfvars", "rclone.conf", "boto.cfg"),
)


@dataclass(frozen=True)
class Packed:
    """By path below the folder. sent: bytes of each file that travels; left: why each other file or folder stays"""

    sent: dict[str, int]
    left: dict[str, str]

    def sentences(self) -> list[str]:
        """Sentences for the person, before anything leaves."""
        total = sum(self.sent.values()) / 2**20
        lines = [f"sends {len(self.sent)} files ({total:.1f} MiB): {_some(list(self.sent))}"]
        by_reason: dict[str, list[str]] = {}
        for name, reason in self.left.items():
            by_reason.setdefault(reason, []).append(name)
        return lines + [f"stays here ({reason}): {_some(names)}" for reason, names in by_reason.items()]


class Luggage:
    """The files of `folder` that travel.

    Credentials, weights, repositories, files over 10 MiB, links that lead out, and what the ignore file names stay.
    The ignore file has the syntax of a `.gitignore`. A `.gitignore` itself is not obeyed: it often names the data.
    """

    def __init__(self, folder: Path, needed: str = "") -> None:
        """needed: the configuration's name; it always travels. Raises UserError for a wrong line in the ignore file."""
        import pathspec

        self.folder, self._needed = folder, needed
        ignore = folder / IGNORE_FILE
        lines = ignore.read_text(encoding="utf-8").splitlines() if ignore.is_file() else []
        try:
            self._ignored = pathspec.GitIgnoreSpec.from_lines(lines)
        except ValueError as error:
            raise UserError(f"{ignore} has a line that is no pattern: {error}; write it as in a .gitignore") from None

    def files(self) -> Iterator[Path]:
        """The files that travel, in the order of their names."""
        return (path for path, reason in self._all() if reason is None)

    def _all(self) -> Iterator[tuple[Path, str | None]]:
        """All files, each with the reason why it stays or None, and the folders that stay as a whole."""
        for root, folders, files in os.walk(self.folder):
            inside = [name for name in sorted(folders) if name not in LEFT_OUT_FOLDERS]
            reasons = {name: self._why_not_folder(Path(root, name)) for name in inside}
            folders[:] = [name for name in inside if reasons[name] is None]
            yield from ((Path(root, name), reason) for name, reason in reasons.items() if reason is not None)
            for name in sorted(files):
                if name not in (".gitignore", IGNORE_FILE):
                    yield Path(root, name), self.why_not(Path(root, name))

    def _why_not_folder(self, path: Path) -> str | None:
        if path.is_symlink():
            return "a link to a folder"
        if path.name.startswith("."):
            return HIDDEN
        return f"{IGNORE_FILE} names it" if self._ignores(path, "/") else None

    def why_not(self, path: Path) -> str | None:
        """Why this file stays. None if it travels."""
        if path == self.folder / self._needed:
            return None
        if path.is_symlink() and not path.resolve().is_relative_to(self.folder.resolve()):
            return "a link that leads out of the folder"
        if not path.is_file() or path.name in (".gitignore", IGNORE_FILE):
            return "it is no file of the run"
        if _is_hidden(path, self.folder) or _is_hidden(path.resolve(), self.folder.resolve()):
            return HIDDEN
        if is_credential(path) or is_credential(path.resolve()):
            return "looks like a credential"
        if path.suffix.lower() in LEFT_OUT_SUFFIXES or path.stat().st_size > FILE_LIMIT_BYTES:
            return "weights and files over 10 MiB stay here"
        return f"{IGNORE_FILE} names it" if self._ignores(path) else None

    def copy_to(self, package: Path) -> Packed:
        """Copy the files that travel. Raises UserError with the largest ones if they are more than Ray accepts."""
        found = list(self._all())
        files = [path for path, reason in found if reason is None]
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
        return Packed(
            {self._name(path): path.stat().st_size for path in files},
            {self._name(path): reason for path, reason in found if reason is not None},
        )

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def _ignores(self, path: Path, end: str = "") -> bool:
        return bool(self._ignored.match_file(path.relative_to(self.folder).as_posix() + end))


def is_credential(path: Path) -> bool:
    """Whether a file has a name of credentials, or begins like a private key or a service account's file."""
    name = path.name.lower()
    if any(fnmatchcase(name, pattern) for pattern in CREDENTIALS):
        return True
    try:
        with path.open("rb") as file:
            begin = file.read(4096).lstrip()
    except OSError:
        return False
    if begin.startswith((b"-----BEGIN", b"PuTTY-User-Key-File", b"openssh-key-v1")):
        return b"PUBLIC KEY" not in begin.splitlines()[0] and b"CERTIFICATE" not in begin.splitlines()[0]
    return begin.startswith(b"{") and b'"private_key"' in begin and b"PRIVATE KEY-----" in begin


def _is_hidden(path: Path, folder: Path) -> bool:
    """Whether the name of the file, or of a folder above it, begins with a dot."""
    return path.is_relative_to(folder) and any(part.startswith(".") for part in path.relative_to(folder).parts)


def _some(names: list[str]) -> str:
    more = len(names) - NAMED_AT_MOST
    return ", ".join(names[:NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")
