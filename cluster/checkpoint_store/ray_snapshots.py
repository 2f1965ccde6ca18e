"""A pyarrow filesystem whose bytes lie on the head (`files.py` there): Ray Train's `storage_filesystem`.

Ray keeps its own small snapshots here; checkpoints go through `StoreClient`. A file is published when its stream is
closed after all writes succeeded. A stream that was dropped, or that failed, publishes nothing.
"""

from __future__ import annotations

import errno
import io
import sys
import time
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
from pyarrow.fs import FileInfo, FileSelector, FileSystemHandler, FileType, PyFileSystem

from ..head import HeadActor

FULL = (errno.ENOSPC, errno.EDQUOT)
ROOM_SECONDS = 600.0
ROOM_PAUSE_SECONDS = 1.0
TYPES = {"file": FileType.File, "directory": FileType.Directory, "absent": FileType.NotFound}


class StoreFileSystemHandler(FileSystemHandler):  # type: ignore[misc]
    """Two handlers of the same store are equal, also after pickling: Ray compares them to know its own."""

    def __init__(self, store: HeadActor) -> None:
        self.store = store

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StoreFileSystemHandler) and other.store.name == self.store.name

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(self.store.name)

    def __reduce__(self) -> tuple[Any, ...]:
        return StoreFileSystemHandler, (self.store,)

    def get_type_name(self) -> str:
        return "gemfleet"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> list[FileInfo]:
        found = self._call("info", list(paths))
        return [_info(path, *facts[1:]) for path, facts in zip(paths, found, strict=True)]

    def get_file_info_selector(self, selector: FileSelector) -> list[FileInfo]:
        found = self._call("list", selector.base_dir, selector.recursive, selector.allow_not_found)
        root = "/" if selector.base_dir.startswith("/") else ""  # Arrow cuts the folder that it asked for off each path
        return [_info(root + name, *facts) for name, *facts in found]

    def create_dir(self, path: str, recursive: bool) -> None:
        self._call("make_folder", path)

    def delete_dir(self, path: str) -> None:
        self._call("remove", path)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        self._call("remove", path, True)

    def delete_root_dir_contents(self) -> None:
        self._call("remove", "", True)

    def delete_file(self, path: str) -> None:
        self._call("remove", path)

    def move(self, src: str, dest: str) -> None:
        self._call("move", src, dest)

    def copy_file(self, src: str, dest: str) -> None:
        self._call("copy", src, dest)

    def open_input_stream(self, path: str) -> Any:
        return pa.BufferReader(self._call("read", path))

    def open_input_file(self, path: str) -> Any:
        return pa.BufferReader(self._call("read", path))

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        return pa.PythonFile(_Upload(self, path), mode="w")

    def open_append_stream(self, path: str, metadata: Any) -> Any:
        raise NotImplementedError("the store keeps whole files; nothing of Ray Train appends to one")

    def _call(self, method: str, *arguments: Any) -> Any:
        """Call a method of `StoredFiles`; wait on a full disk, because Ray ends a run without its snapshot."""
        deadline = time.monotonic() + ROOM_SECONDS
        while True:
            try:
                return self.store.call("file_call", method, *arguments)
            except OSError as error:
                if error.errno not in FULL or time.monotonic() > deadline:
                    raise
                time.sleep(ROOM_PAUSE_SECONDS)


class _Upload(io.RawIOBase):
    """Collects one small file and publishes it on `close`.

    It publishes nothing after a failed write, and nothing when an exception leaves its `with` block: Python then closes
    the stream too, while it handles that exception.
    """

    def __init__(self, handler: StoreFileSystemHandler, path: str) -> None:
        super().__init__()
        self._handler, self._path = handler, path
        self._content: io.BytesIO | None = io.BytesIO()
        self._handled_before = sys.exception()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if self._content is None:
            raise ValueError(f"the upload of {self._path} has ended")
        try:
            return self._content.write(data)
        except BaseException:
            self._content = None
            raise

    def close(self) -> None:
        content, self._content = self._content, None
        if self.closed:
            return
        super().close()
        if content is not None and sys.exception() in (None, self._handled_before):
            self._handler._call("replace", self._path, content.getvalue())

    def __del__(self) -> None:
        """Throws away what was collected. io's own finaliser would close the stream, and so publish it."""
        self._content = None


def store_filesystem(store: HeadActor) -> PyFileSystem:
    """The filesystem for `ray.train.RunConfig(storage_filesystem=...)`."""
    return PyFileSystem(StoreFileSystemHandler(store))


def _info(path: str, kind: str, size: int, modified: float) -> FileInfo:
    if kind == "absent":
        return FileInfo(path, FileType.NotFound)
    length = size if kind == "file" else None
    return FileInfo(path, TYPES[kind], size=length, mtime=datetime.fromtimestamp(modified, UTC))
