"""Checksums of whole bursts left to a device."""

from ._burst import RxBurst, TxBurst

def defer_checksums(burst: RxBurst | TxBurst, gso_size: int = 0) -> int: ...
