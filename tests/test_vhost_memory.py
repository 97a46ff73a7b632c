"""The memory table of a vhost-user port: regions come and go while rings run."""

from __future__ import annotations

import gc
import struct
import threading
from typing import Any

import pytest
import vhost_wire as wire
from vhost_fixtures import SECONDS, descriptors, open_port, path, round_trip, start, until

import pyvirtnet
from pyvirtnet import dma
from pyvirtnet.transport import vhost_messages

__all__ = ["path", "start"]  # fixtures


def tables(back_end: Any) -> list[int]:
    """How many regions each memory table had."""
    messages = [m for m in back_end.log if m.request == wire.SET_MEM_TABLE]
    return [struct.unpack_from("<I", m.payload)[0] for m in messages]


def big_burst(port: pyvirtnet.Port) -> pyvirtnet.TxBurst:
    """Frames in a region of their own."""
    return port.alloc_burst(3000, 1514)


def test_regions_come_and_go_while_rings_run(path, start):
    back_end = start()
    with open_port(path) as port:
        bursts = [big_burst(port) for _ in range(3)]
        for i, burst in enumerate(bursts):
            burst.data[:] = i
            assert port.send_burst(burst[2990:2992]) == 2
            for frame in (port.recv_burst(1, timeout=SECONDS), port.recv_burst(1, timeout=SECONDS)):
                assert bytes(frame[0]) == bytes([i]) * 1514
        before = tables(back_end)[-1]
        port.reclaim()
        del bursts, burst
        until(lambda: tables(back_end)[-1] <= before - 2)  # the arena keeps one
        round_trip(port, 60, 9014, 65535)


def test_more_regions_than_a_table_has(path, start):
    back_end = start()
    with open_port(path) as port:
        bursts: list[pyvirtnet.TxBurst] = []
        with pytest.raises(pyvirtnet.OutOfMemory, match="8 regions"):
            until(lambda: False, lambda: bursts.append(big_burst(port)))
        assert max(tables(back_end)) == 8
        round_trip(port)
        bursts.clear()
        big_burst(port)


def test_a_table_that_is_refused_is_an_error_and_the_region_is_not_in_it(path, start):
    back_end = start()
    with open_port(path) as port:
        _kept = big_burst(port)  # lies in what the arena may have kept: the next one needs more
        held = len(list(dma.memory.regions()))
        no = wire.answer(wire.SET_MEM_TABLE, struct.pack("<Q", 1))
        back_end.hooks[wire.SET_MEM_TABLE] = lambda _: no
        with pytest.raises(pyvirtnet.Error, match="refused SET_MEM_TABLE"):
            big_burst(port)
        assert len(list(dma.memory.regions())) == held
        del back_end.hooks[wire.SET_MEM_TABLE]
        big_burst(port)
        round_trip(port)


def test_a_region_that_dies_in_the_middle_of_an_exchange(path, start):
    """A finaliser may run anywhere: its message waits for the answer under way."""
    back_end = start()
    with open_port(path) as port:
        bursts = [big_burst(port), big_burst(port)]

        def drop(_: wire.Message) -> None:
            bursts.clear()

        back_end.hooks[wire.GET_CONFIG] = drop
        count = tables(back_end)[-1]
        assert port.link.up
        until(lambda: tables(back_end)[-1] < count)
        del back_end.hooks[wire.GET_CONFIG]
        round_trip(port, 60, 9014)


def test_a_region_whose_turn_does_not_come_is_told_later(path, start, monkeypatch):
    """Other threads' exchanges take longer than an answer may: nobody's connection has failed."""
    back_end = start()
    with open_port(path) as port:
        _kept = big_burst(port)  # as above
        count = tables(back_end)[-1]
        link, asked, told = port._transport._link, threading.Event(), threading.Event()

        def talk() -> None:
            with link._turn():
                asked.set()
                told.wait(SECONDS)

        other = threading.Thread(target=talk)
        other.start()
        asked.wait(SECONDS)
        with monkeypatch.context() as patch:
            patch.setattr(vhost_messages, "ANSWER_SECONDS", 0.05)
            burst = big_burst(port)
        assert tables(back_end)[-1] == count
        told.set()
        other.join()
        assert tables(back_end)[-1] == count + 1
        assert port.send_burst(burst[:1]) == 1
        assert len(port.recv_burst(1, timeout=SECONDS)) == 1


def test_a_burst_of_one_back_end_is_sent_to_another(tmp_path, start):
    paths = [str(tmp_path / name) for name in ("one", "two")]
    ends = [start(at=path) for path in paths]
    with open_port(paths[0]) as one, open_port(paths[1]) as two:
        for size in (60, 9014):
            assert one.send_burst([bytes([size & 0xFF]) * size]) == 1
            burst = one.recv_burst(1, timeout=SECONDS)
            assert two.send_burst(burst) == 1
            back = two.recv_burst(1, timeout=SECONDS)
            assert bytes(back[0]) == bytes([size & 0xFF]) * size
    for end in ends:
        end.device.check()


def test_a_port_of_a_dead_back_end_is_in_nobodys_way(tmp_path, start):
    paths = [str(tmp_path / name) for name in ("one", "two")]
    dead = start(at=paths[0])
    start(at=paths[1])
    with open_port(paths[0]) as one, open_port(paths[1]) as two:
        dead.kill()
        held = [big_burst(two) for _ in range(2)]
        assert two.send_burst(held[1][:1]) == 1
        assert len(two.recv_burst(1, timeout=SECONDS)) == 1
        with pytest.raises(pyvirtnet.DeviceGone):
            _ = one.link


def test_no_file_descriptor_is_left_behind(path, start):
    start()
    before = descriptors()
    for _ in range(3):
        with open_port(path) as port:
            held = [big_burst(port), big_burst(port)]
            round_trip(port)
            del held
            port.reset()
    del port
    gc.collect()
    until(lambda: descriptors() <= before + 2)  # the arena may keep a region
