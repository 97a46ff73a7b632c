"""The receive queue of a pair, and who sleeps on it."""

from ._frames import Sender

class Waiter(Sender):
    @property
    def spin(self) -> float: ...
    def fileno(self) -> int: ...
