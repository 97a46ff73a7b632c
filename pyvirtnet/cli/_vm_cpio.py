"""Archives for the guest's initial file system: cpio in the kernel's "newc" format."""

from __future__ import annotations

import stat
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

_MAGIC = b"070701"


class Archive:
    """Writes one archive to `out`. Parent folders are made as needed, once."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._inode = 0
        self._folders: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if kind is None:
            self._entry("TRAILER!!!", 0, b"")

    def folder(self, name: str) -> None:
        if name in self._folders:
            return
        self._parents(name)
        self._folders.add(name)
        self._entry(name, stat.S_IFDIR | 0o755, b"")

    def file(self, name: str, content: bytes, mode: int = 0o644) -> None:
        self._parents(name)
        self._entry(name, stat.S_IFREG | mode, content)

    def link(self, name: str, target: str) -> None:
        self._parents(name)
        self._entry(name, stat.S_IFLNK | 0o777, target.encode())

    def tree(self, name: str, source: Path) -> None:
        """All files and folders of `source`, as `name`."""
        self.folder(name)
        for path in sorted(source.rglob("*")):
            inside = f"{name}/{path.relative_to(source)}"
            if path.is_dir():
                self.folder(inside)
            else:
                self.file(inside, path.read_bytes(), path.stat().st_mode & 0o777)

    def _parents(self, name: str) -> None:
        if "/" in name:
            self.folder(name.rpartition("/")[0])

    def _entry(self, name: str, mode: int, content: bytes) -> None:
        self._inode += 1
        encoded = name.encode() + b"\0"
        #        ino          mode  uid gid nlink mtime size       dev (4)     name size     check
        fields = (self._inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
        self._write(_MAGIC + b"".join(b"%08X" % field for field in fields) + encoded)
        self._write(content)

    def _write(self, data: bytes) -> None:
        self._out.write(data + bytes(-len(data) % 4))
