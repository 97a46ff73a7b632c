"""Records of capture files made of whole bursts."""

from ._burst import RxBurst, TxBurst

def records(
    burst: RxBurst | TxBurst, stamp: int, snaplen: int, *, ng: bool = False, interface: int = 0
) -> bytes: ...
