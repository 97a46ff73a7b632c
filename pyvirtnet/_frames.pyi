"""What a queue pair is made of, on its sending side."""

from ._pages import PagePool

class Sender:
    pool: PagePool | None
    release_from: int
    _halt: int
