"""Frames awaited: recv, async for, cancellation, several tasks and ports."""

import asyncio
import threading
import time

import pytest
from nic import PLAIN, frame, frames
from vhost_fixtures import SECONDS

from pyvirtnet import DeviceBroken, PortClosed, QueueBusy
from pyvirtnet.testing import mask
from pyvirtnet.transport.sim import SimTransport


def run(work):
    """A coroutine to its end, in bound time."""
    return asyncio.run(asyncio.wait_for(work, 6 * SECONDS))


async def sleeping(nic, index=0):
    """Until the driver asks for interrupts."""
    while nic.device.queues[index]._avail[0] & 1:
        await asyncio.sleep(0.001)


def test_recv_waits_for_frames(nic):
    async def work():
        nic.device.deliver(*frames(3))
        assert [bytes(one) for one in await nic.port.recv(2)] == frames(2)
        assert [bytes(one) for one in await nic.port.recv()] == frames(1, 60, 2)
        for number in range(20):
            task = asyncio.create_task(nic.port.recv())
            await sleeping(nic)
            nic.device.deliver(frame(60, number))
            assert [bytes(one) for one in await task] == frames(1, 60, number)

    run(work())


def test_async_for_ends_with_the_port(nic):
    async def feed():
        for number in range(10):
            await sleeping(nic)
            nic.device.deliver(frame(60, number))
            await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        nic.port.close()

    async def work():
        task, got = asyncio.create_task(feed()), []
        async for burst in nic.port:
            got += [bytes(one) for one in burst]
        await task
        assert got == frames(10)

    run(work())


def test_closing_in_another_thread_ends_async_for(nic):
    """It was PortClosed, if the loop saw that the queues had stopped before close() was done."""
    seen, recv, close = threading.Event(), nic.port.recv, nic.transport.close

    async def watched():
        try:
            return await recv()
        except PortClosed:
            seen.set()
            raise

    def closes_late():
        seen.wait(SECONDS)
        close()

    async def work():
        closing = asyncio.get_running_loop().run_in_executor(None, nic.port.close)
        async for _ in nic.port:
            pass
        await closing

    nic.port.recv, nic.transport.close = watched, closes_late
    run(work())
    assert seen.is_set()


def test_a_cancelled_call_has_taken_nothing(nic):
    async def work():
        for number in range(20):
            task = asyncio.create_task(nic.port.recv())
            await sleeping(nic)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            nic.device.deliver(frame(60, number))
            assert [bytes(one) for one in await nic.port.recv()] == frames(1, 60, number)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await nic.port.recv()

    run(work())


def test_other_tasks_run_meanwhile(make_nic):
    """Two ports in one event loop, each forwarding to the other, and a clock beside them."""
    left, right = make_nic(), make_nic()
    ticks = []

    async def forward(one, other):
        async for burst in one.port:
            assert other.port.send_burst(burst) == len(burst)

    async def tick():
        while True:
            ticks.append(None)
            await asyncio.sleep(0.001)

    async def work():
        tasks = [asyncio.create_task(one) for one in (
            forward(left, right), forward(right, left), tick())]  # fmt: skip
        for number in range(50):
            for one, other in ((left, right), (right, left)):
                one.device.deliver(frame(60, number))
                while not (sent := other.device.take()):
                    await asyncio.sleep(0)
                assert sent == [frame(60, number)]
                other.device.complete()
        assert ticks
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    run(work())
    for nic in (left, right):
        nic.port.reclaim()


def test_a_task_for_each_pair(make_nic):
    offered = PLAIN | mask("mq", "ctrl_vq")
    nic = make_nic(offered=offered, queue_sizes=(16,) * 6, queue_pairs=3)

    async def work():
        tasks = [asyncio.create_task(nic.port.recv(queue=pair)) for pair in range(3)]
        for pair in (2, 0, 1):
            await sleeping(nic, 2 * pair)
            nic.device.deliver(frame(60, pair), pair=pair)
        for pair, burst in enumerate(await asyncio.gather(*tasks)):
            assert [bytes(one) for one in burst] == [frame(60, pair)]

    run(work())


def test_a_second_task_is_turned_away(nic):
    async def work():
        task = asyncio.create_task(nic.port.recv())
        await asyncio.sleep(0)
        with pytest.raises(QueueBusy, match="another task"):
            await nic.port.recv()
        nic.device.deliver(frame(60))
        assert len(await task) == 1
        nic.device.deliver(frame(60))
        assert len(await nic.port.recv()) == 1

    run(work())


def test_a_device_that_needs_a_reset(nic):
    async def work():
        task = asyncio.create_task(nic.port.recv())
        await sleeping(nic)
        nic.device.need_reset()
        with pytest.raises(DeviceBroken, match="asks to be reset"):
            await task
        nic.port.reset()
        nic.device.deliver(frame(60))
        assert len(await nic.port.recv()) == 1

    run(work())


def test_a_closed_port(nic):
    nic.port.close()

    async def work():
        with pytest.raises(PortClosed):
            await nic.port.recv()
        assert [burst async for burst in nic.port] == []

    run(work())


def test_a_device_without_interrupts(make_nic, monkeypatch):
    monkeypatch.setattr(SimTransport, "interrupt_fd", lambda *_: -1)
    nic = make_nic()

    async def work():
        task = asyncio.create_task(nic.port.recv())
        await asyncio.sleep(0.01)
        nic.device.deliver(frame(60))
        assert len(await task) == 1

    run(work())


def test_waiting_takes_no_processor(nic):
    async def work():
        before = time.process_time()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.0):
                await nic.port.recv()
        assert time.process_time() - before < 0.5

    run(work())
