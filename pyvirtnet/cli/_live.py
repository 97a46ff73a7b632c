"""A line on the terminal that says how far long work is; nothing where there is no terminal."""

from __future__ import annotations

import sys
import time


class Live:
    """Overwritten once a second, cleared before anything else is said. On stderr."""

    def __init__(self, every: float = 1.0) -> None:
        self._out = sys.stderr if sys.stderr.isatty() else None
        self._every = every
        self._next = time.monotonic() + every if self._out else float("inf")

    def due(self) -> bool:
        return self._out is not None and time.monotonic() >= self._next

    def show(self, text: str) -> None:
        """Say it now."""
        if self._out is not None:
            self._next = time.monotonic() + self._every
            self._out.write(f"\r\x1b[K{text}")
            self._out.flush()

    def clear(self) -> None:
        if self._out is not None:
            self._out.write("\r\x1b[K")
            self._out.flush()
