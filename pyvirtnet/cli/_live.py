"""How far long work is: a line or a table on the terminal, plain lines where there is none."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

PLAIN = 10.0  # seconds between lines in a file


class Live:
    """Overwritten once a second, cleared before anything else is said. On stderr.

    A table, of what has cells, needs rich; without it, and for what has none, it is a line.
    """

    def __init__(self, every: float = 1.0) -> None:
        self._terminal = sys.stderr.isatty()
        self._every = every if self._terminal else max(every, PLAIN)
        self._next = time.monotonic() + self._every
        self._table: Any = None

    def due(self) -> bool:
        return time.monotonic() >= self._next

    def show(self, text: str, cells: Mapping[str, str] | None = None) -> None:
        """Say it now."""
        self._next = time.monotonic() + self._every
        if not self._terminal:
            print(text, file=sys.stderr, flush=True)
        elif cells is None or not self._draw(cells):
            sys.stderr.write(f"\r\x1b[K{text}")
            sys.stderr.flush()

    def clear(self) -> None:
        if self._table is not None:
            self._table.stop()
            self._table = None
        elif self._terminal:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def _draw(self, cells: Mapping[str, str]) -> bool:
        """With rich; false where it is not installed."""
        try:
            from rich.console import Console
            from rich.live import Live as RichLive
            from rich.table import Table
        except ImportError:
            return False
        table = Table()
        for name in cells:
            table.add_column(name, justify="right")
        table.add_row(*cells.values())
        if self._table is None:
            console = Console(stderr=True)
            self._table = RichLive(console=console, auto_refresh=False, transient=True)
            self._table.start()
        self._table.update(table, refresh=True)
        return True
