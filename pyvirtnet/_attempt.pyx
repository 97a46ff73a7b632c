"""A lock that is taken if it is free: a signal comes before or after that, never in between."""

cimport cython


@cython.auto_pickle(False)
cdef class Attempt:
    """`with Attempt(lock) as taken:` tries to take it, for so many seconds, and lets go of it.

    In Python, Ctrl-C could come after `acquire` and before `try`; then nobody would let go.
    """

    cdef object lock
    cdef double seconds
    cdef bint taken

    def __init__(self, lock, double seconds=0.0):
        self.lock, self.seconds = lock, seconds

    def __enter__(self) -> bool:
        self.taken = self.lock.acquire(self.seconds > 0, self.seconds if self.seconds > 0 else -1)
        return self.taken

    def __exit__(self, *error) -> None:
        if self.taken:
            self.lock.release()
