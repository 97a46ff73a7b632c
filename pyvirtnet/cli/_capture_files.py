"""Where captured frames go: one file, the standard output, or one file after the other."""

from __future__ import annotations

import sys
import time
from collections import deque
from pathlib import Path
from typing import BinaryIO

from .._burst import RxBurst
from ..errors import Error
from ..pcap import Writer


class Files:
    """Takes bursts. With `size` (bytes) or `seconds` a file is followed by another once it is at
    least so long or old; `keep` of them stay, the oldest are removed.
    """

    def __init__(
        self,
        path: str,
        *,
        ng: bool,
        snaplen: int,
        interface: str,
        size: int | None = None,
        seconds: float | None = None,
        keep: int | None = None,
    ) -> None:
        self._path, self._ng, self._snaplen, self._interface = path, ng, snaplen, interface
        self._size, self._seconds, self._keep = size, seconds, keep
        self._kept: deque[Path] = deque()
        self.written, self._octets = 0, 0
        self._open()

    @property
    def octets(self) -> int:
        """Bytes written to all files."""
        return self._octets + self._writer.octets

    @property
    def names(self) -> list[str]:
        """The files that there are now."""
        return [str(path) for path in self._kept] or [self._path]

    def write(self, burst: RxBurst, stamp: int) -> None:
        """All frames, with the time `stamp`; they begin another file if that is due."""
        if self._is_due():
            self._end(stamp, 0, 0)
            self._open()
        self._writer.write(burst, stamp)
        if self._path == "-":
            self._file.flush()

    def flush(self) -> None:
        """What was written can be read by others."""
        self._file.flush()

    def close(self, stamp: int, received: int, dropped: int) -> None:
        """The last file is complete, with what the interface counted."""
        if self._file.closed:  # and the next one could not be opened
            return
        self._end(stamp, received, dropped)

    def _is_due(self) -> bool:
        if self._size is not None and self._writer.octets >= self._size:
            return True
        return self._seconds is not None and time.monotonic() >= self._opened + self._seconds

    def _open(self) -> None:
        self.written += 1
        self._opened = time.monotonic()
        self._file = self._next_file()
        self._writer = Writer(
            self._file, ng=self._ng, snaplen=self._snaplen, interface=self._interface
        )

    def _next_file(self) -> BinaryIO:
        if self._path == "-":
            return sys.stdout.buffer
        path = Path(self._path)
        if self._size is not None or self._seconds is not None:
            path = path.with_name(f"{path.stem}-{self.written:05}{path.suffix}")
            if self._keep is not None and len(self._kept) == self._keep:
                self._kept.popleft().unlink(missing_ok=True)
            self._kept.append(path)
        try:
            return path.open("wb")
        except OSError as error:
            mend = "name a file in a folder that you may write to"
            raise Error(f"cannot write {path}", str(error.strerror), mend) from None

    def _end(self, stamp: int, received: int, dropped: int) -> None:
        if received:
            self._writer.finish(stamp, received, dropped)
        self._octets += self._writer.octets
        self._writer.octets = 0
        self._file.flush()
        if self._path != "-":
            self._file.close()
