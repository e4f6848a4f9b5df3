"""Where files and batches lie: a folder of this machine, or whatever else fsspec reaches.

What is written appears whole or not at all, and is there for good when the call returns. Everything here
blocks, so it is called in threads. Names are relative, parts separated by slashes.
"""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import shutil
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final, Protocol, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from producer.errors import UsageError

CHUNK: Final = 1 << 20
DRAFTS: Final = "drafts"
"""Folder of what is being written; what a killed process left there is swept after a day."""
DRAFT_S: Final = 86400.0


class Storage(Protocol):
    """Named bytes."""

    def read(self, name: str) -> bytes:
        """All of it.

        Raises:
            FileNotFoundError: there is none.
        """
        ...

    def open(self, name: str) -> IO[bytes]:
        """For reading, buffered and seekable.

        Raises:
            FileNotFoundError: there is none.
        """
        ...

    def write(self, name: str, data: bytes) -> None:
        """Make it, or replace it."""
        ...

    def writing(self, name: str) -> contextlib.AbstractContextManager[IO[bytes]]:
        """Write it bit by bit; it appears, or is replaced, when the context ends without an exception."""
        ...

    def names(self, folder: str) -> list[str]:
        """What lies in a folder, by its last part, sorted; empty where there is no such folder."""
        ...

    def delete(self, name: str) -> None:
        """Remove it, if it is there."""
        ...

    def delete_folder(self, folder: str) -> None:
        """Remove it with all that lies in it, if it is there."""
        ...

    def sweep_drafts(self) -> None:
        """Remove what was left half-written."""
        ...


def open_storage(url: str) -> Storage:
    """The storage at a URL as fsspec reads it.

    Raises:
        UsageError: fsspec knows no such place, or lacks the package for it; or it can't be made.
    """
    try:
        system, root = cast("tuple[Any, str]", fsspec.url_to_fs(url, use_listings_cache=False))
    except (ValueError, ImportError) as error:
        raise UsageError(f"files can't be kept at {url}: {error}") from None
    if isinstance(system, LocalFileSystem):
        return _folder(Path(root), url)
    return ObjectStorage(system, root)


def _folder(root: Path, url: str) -> Folder:
    """A folder that others on this machine don't look into, unless it is there and somebody lets them."""
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"files can't be kept at {url}: {error.strerror}") from None
    return Folder(root)


class Folder:
    """A folder of this machine, or one that is mounted: drafts are flushed to disk, then moved."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def read(self, name: str) -> bytes:
        """See `Storage`."""
        return (self._root / name).read_bytes()

    def open(self, name: str) -> IO[bytes]:
        """See `Storage`."""
        return (self._root / name).open("rb", buffering=CHUNK)

    def write(self, name: str, data: bytes) -> None:
        """See `Storage`."""
        with self.writing(name) as file:
            file.write(data)

    @contextmanager
    def writing(self, name: str) -> Generator[IO[bytes]]:
        """See `Storage`."""
        path, draft = self._root / name, self._root / DRAFTS / secrets.token_hex(12)
        draft.parent.mkdir(parents=True, exist_ok=True)
        try:
            with draft.open("wb", buffering=CHUNK) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            path.parent.mkdir(parents=True, exist_ok=True)
            draft.replace(path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)

    def names(self, folder: str) -> list[str]:
        """See `Storage`."""
        try:
            return sorted(os.listdir(self._root / folder))
        except FileNotFoundError:
            return []

    def delete(self, name: str) -> None:
        """See `Storage`."""
        (self._root / name).unlink(missing_ok=True)

    def delete_folder(self, folder: str) -> None:
        """See `Storage`."""
        shutil.rmtree(self._root / folder, ignore_errors=True)

    def sweep_drafts(self) -> None:
        """See `Storage`."""
        for name in self.names(DRAFTS):
            draft = self._root / DRAFTS / name
            with contextlib.suppress(FileNotFoundError):
                if time.time() - draft.stat().st_mtime > DRAFT_S:
                    draft.unlink()


class ObjectStorage:
    """Any other file system of fsspec. Single objects appear whole there; long ones are drafts first."""

    def __init__(self, system: Any, root: str) -> None:
        self._system = system
        self._root = root.rstrip("/")

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def read(self, name: str) -> bytes:
        """See `Storage`."""
        return bytes(self._system.cat_file(self._path(name)))

    def open(self, name: str) -> IO[bytes]:
        """See `Storage`."""
        return io.BufferedReader(self._system.open(self._path(name), "rb"), CHUNK)

    def write(self, name: str, data: bytes) -> None:
        """See `Storage`."""
        self._system.makedirs(self._path(name).rpartition("/")[0], exist_ok=True)
        self._system.pipe_file(self._path(name), data)

    @contextmanager
    def writing(self, name: str) -> Generator[IO[bytes]]:
        """See `Storage`."""
        # Its age is in its name: not every storage knows when an object was made.
        draft = self._path(f"{DRAFTS}/{int(time.time()):x}-{secrets.token_hex(12)}")
        try:
            for path in (draft, self._path(name)):
                self._system.makedirs(path.rpartition("/")[0], exist_ok=True)
            with self._system.open(draft, "wb") as file:
                yield file
            self._system.mv(draft, self._path(name))
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                self._system.rm_file(draft)
            raise

    def names(self, folder: str) -> list[str]:
        """See `Storage`."""
        try:
            found: list[str] = self._system.ls(self._path(folder), detail=False)
        except FileNotFoundError:
            return []
        return sorted(path.rstrip("/").rpartition("/")[2] for path in found)

    def delete(self, name: str) -> None:
        """See `Storage`."""
        with contextlib.suppress(FileNotFoundError):
            self._system.rm_file(self._path(name))

    def delete_folder(self, folder: str) -> None:
        """See `Storage`."""
        with contextlib.suppress(FileNotFoundError):
            self._system.rm(self._path(folder), recursive=True)

    def sweep_drafts(self) -> None:
        """See `Storage`."""
        for name in self.names(DRAFTS):
            began, _, rest = name.partition("-")
            with contextlib.suppress(ValueError):
                if rest and time.time() - int(began, 16) > DRAFT_S:
                    self.delete(f"{DRAFTS}/{name}")


def pieces(file: IO[bytes], size: int | None = None) -> Iterator[bytes]:
    """What is left of a file, or so many bytes of it, a chunk at a time."""
    left = size
    while chunk := file.read(CHUNK if left is None else min(CHUNK, left)):
        left = None if left is None else left - len(chunk)
        yield chunk


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
