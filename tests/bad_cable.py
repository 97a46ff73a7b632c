"""A bad cable, and the tool as its tests call it."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from pyvirtnet.cli import pktgen
from pyvirtnet.testing import Loopback, NetDevice

Mangle = Callable[[list[bytes]], list[bytes]]
Plug = Callable[[NetDevice], str]


class Bad(Loopback):
    """A loopback whose frames go through `mangle`."""

    def __init__(self, mangle: Mangle, **options: Any) -> None:
        super().__init__(**options)
        self.mangle, self.waiting = mangle, 0

    def take(self, n: int | None = None, *, pair: int = 0) -> list[bytes]:
        return self.mangle(super().take(n, pair=pair))

    def poll(self) -> int:
        moved = super().poll()
        self.waiting = max(self.waiting, len(self.wires[0].backlog))
        return moved


class Every:
    """Does something to each n-th frame of all."""

    def __init__(self, n: int, change: Callable[[bytes], list[bytes]]) -> None:
        self.n, self.change, self.seen = n, change, 0

    def __call__(self, frames: list[bytes]) -> list[bytes]:
        result = []
        for frame in frames:
            self.seen += 1
            result += [frame] if self.seen % self.n else self.change(frame)
        return result


def flip(frame: bytes) -> list[bytes]:
    return [frame[:57] + bytes([frame[57] ^ 4]) + frame[58:]]


def swap(frames: list[bytes]) -> list[bytes]:
    return [*frames[:-2], *reversed(frames[-2:])]


class Tool:
    """Calls the tool; what it wrote."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.out = self.err = ""

    def __call__(self, *words: str) -> int:
        self._capsys.readouterr()
        try:
            return pktgen.main(words)
        finally:
            self.out, self.err = self._capsys.readouterr()

    @property
    def figures(self) -> dict[str, Any]:
        (line,) = self.out.splitlines()  # and nothing else
        figures: dict[str, Any] = json.loads(line)
        return figures

    @property
    def row(self) -> dict[str, Any]:
        (row,) = self.figures["rows"]
        assert isinstance(row, dict)
        return row
