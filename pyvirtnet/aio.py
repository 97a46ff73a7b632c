"""Frames for asyncio: `await port.recv()`, `async for burst in port`."""

from __future__ import annotations

import asyncio
from threading import RLock
from typing import Self

from ._burst import RxBurst
from ._queue import QueuePair
from .errors import FeatureMissing, PortClosed, QueueBusy

BURST = 64
TURNS = 2  # of the event loop, in which frames are looked for before it sleeps
LOOK_SECONDS = 0.25  # between looks at a device that is silent
POLL_SECONDS = 0.001  # of sleep, where there are no interrupts


class Awaited:
    """A port whose frames are awaited: other tasks run meanwhile."""

    name: str
    _awaited: set[QueuePair]
    _care: RLock
    _closed: bool

    def _pair(self, index: int) -> QueuePair:
        raise NotImplementedError

    def _look(self) -> None:
        raise NotImplementedError

    async def recv(self, n: int = BURST, *, queue: int = 0) -> RxBurst:
        """Up to `n` frames of a queue pair, once there is at least one.

        A call that is cancelled has taken none. Raises what `recv_burst` raises, and QueueBusy
        if another task waits for the same queue pair. The event loop watches `fileno()` meanwhile:
        have no reader of your own there.
        """
        pair = self._pair(queue)
        if pair in self._awaited:
            what, why = f"recv on queue pair {queue} of {self.name}", "another task waits there"
            raise QueueBusy(what, why, "give each task a queue pair of its own")
        self._awaited.add(pair)
        try:
            turns = 0
            while not len(burst := pair.recv_burst(n)):
                await (asyncio.sleep(0) if turns < TURNS else self._sleep(pair))
                turns += 1
            return burst
        finally:
            self._awaited.discard(pair)

    async def _sleep(self, pair: QueuePair) -> None:
        """Until the pair wakes us, with a look at the device if that takes long."""
        try:
            fd = pair.fileno()
        except FeatureMissing:
            await asyncio.sleep(POLL_SECONDS)
            return
        loop = asyncio.get_running_loop()
        woken = loop.create_future()
        timer = loop.call_later(LOOK_SECONDS, _settle, woken, False)
        loop.add_reader(fd, _settle, woken, True)
        try:
            if not await woken:
                self._look()
        finally:
            loop.remove_reader(fd)
            timer.cancel()

    def __aiter__(self) -> Self:
        """Bursts of up to 64 frames, as they come, until the port is closed."""
        return self

    async def __anext__(self) -> RxBurst:
        try:
            return await self.recv()
        except PortClosed:
            with self._care:  # a close() may be under way in another thread
                closed = self._closed
            if closed:
                raise StopAsyncIteration from None
            raise


def _settle(future: asyncio.Future[bool], value: bool) -> None:
    if not future.done():
        future.set_result(value)
