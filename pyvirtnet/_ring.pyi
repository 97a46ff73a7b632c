"""A ring's place in memory."""

def ring_bytes(
    size: int,
    *,
    packed: bool = False,
    tables: bool = False,
    headers: bool = False,
    alignment: int = 0,
) -> int: ...
def ring_parts(size: int, *, packed: bool = False, alignment: int = 0) -> tuple[int, int, int]: ...
