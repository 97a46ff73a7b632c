"""Classic BPF programs over whole bursts."""

import numpy as np
from numpy.typing import NDArray

from ._burst import RxBurst, TxBurst

MAX_INSTRUCTIONS: int

class Program:
    def __init__(self, code: bytes) -> None: ...
    def __len__(self) -> int: ...
    def __call__(self, burst: RxBurst | TxBurst) -> NDArray[np.bool_]: ...
