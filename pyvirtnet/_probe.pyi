"""Probes: numbered, timed frames behind any headers."""

from collections.abc import Mapping
from typing import final

import numpy as np
from numpy.typing import NDArray

from ._burst import TxBurst

NUMBERS: int
PROBE_BYTES: int

@final
class Probes:
    def __init__(self, tables: Mapping[int, NDArray[np.uint8]], stream: int) -> None: ...
    def prepare(self, burst: TxBurst, seed: int) -> None: ...
    def number(self, burst: TxBurst, first: int) -> None: ...
    @property
    def at(self) -> int: ...
    @property
    def stream(self) -> int: ...
