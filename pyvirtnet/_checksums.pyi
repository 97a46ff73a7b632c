"""Internet checksums of whole bursts."""

import numpy as np
from numpy.typing import NDArray

from ._burst import RxBurst, TxBurst

def fix_checksums(burst: RxBurst | TxBurst) -> int: ...
def checksums_ok(burst: RxBurst | TxBurst) -> NDArray[np.bool_]: ...
