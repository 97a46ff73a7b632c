"""Back ends that lie, stall or die: the front end ends in a typed error, and loses nothing."""

from __future__ import annotations

import gc
import os
import signal
import struct
import threading
import time

import pytest
import vhost_wire as wire
from vhost_fixtures import (
    conserved,
    descriptors,
    open_port,
    path,
    poll_until_error,
    round_trip,
    start,
    until,
)

import pyvirtnet
from pyvirtnet import DeviceBroken, DeviceGone, DeviceTimeout
from pyvirtnet.dma import memory
from pyvirtnet.transport import vhost_messages
from pyvirtnet.transport.vhost_messages import Connection, Protocol
from pyvirtnet.transport.vhost_table import MAX_REGIONS

__all__ = ["path", "start"]  # fixtures

U64 = bytes(8)
LIES = {
    "another request": wire.answer(wire.SET_OWNER, U64),
    "no reply flag": wire.answer(wire.GET_FEATURES, U64, flags=1),
    "version 0": wire.answer(wire.GET_FEATURES, U64, flags=4),
    "version 2": wire.answer(wire.GET_FEATURES, U64, flags=6),
    "nothing in it": wire.answer(wire.GET_FEATURES, b""),
    "too short": wire.answer(wire.GET_FEATURES, bytes(7)),
    "too long": wire.answer(wire.GET_FEATURES, bytes(9)),
    "far too long": wire.answer(wire.GET_FEATURES, bytes(4097)),
    "four gigabytes": struct.pack("<III", wire.GET_FEATURES, 5, 0xFFFFFFFF),
    "noise": bytes(range(256)),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
def test_an_answer_that_breaks_the_protocol(path, start, lie):
    start(hooks={wire.GET_FEATURES: lambda _: lie})
    before = descriptors()
    with pytest.raises(DeviceBroken, match=f"back end at {path} breaks the protocol") as caught:
        open_port(path)
    assert caught.value.mend
    until(lambda: descriptors() <= before)


def test_an_answer_with_a_file_descriptor(path, start):
    back_end = start()

    def gift(_: wire.Message) -> bytes:
        back_end.say(wire.answer(wire.GET_FEATURES, U64), [0, 1, 2])
        return b""

    back_end.hooks[wire.GET_FEATURES] = gift
    before = descriptors()
    with pytest.raises(DeviceBroken, match="file descriptor"):
        open_port(path)
    until(lambda: descriptors() <= before)


@pytest.mark.parametrize(
    ("request_", "payload", "error", "words"),
    [
        (wire.GET_QUEUE_NUM, struct.pack("<Q", 0), DeviceBroken, "0 queue pairs"),
        (wire.GET_QUEUE_NUM, struct.pack("<Q", 1 << 40), DeviceBroken, "queue pairs"),
        (wire.GET_STATUS, struct.pack("<Q", 0x10B), DeviceBroken, "0x10b"),
        (wire.GET_STATUS, struct.pack("<Q", 3), pyvirtnet.FeatureMissing, "refused the features"),
        (wire.GET_FEATURES, bytes(8), pyvirtnet.FeatureMissing, "legacy"),
    ],
)
def test_values_that_cannot_be(path, start, request_, payload, error, words):  # noqa: PLR0917
    start(hooks={request_: lambda _: wire.answer(request_, payload)})
    with pytest.raises(error, match=words):
        open_port(path)


def test_an_answer_for_another_queue(path, start):
    lie = wire.answer(wire.GET_VRING_BASE, struct.pack("<II", 1, 0))
    start(hooks={wire.GET_VRING_BASE: lambda _: lie})
    with open_port(path) as port, pytest.raises(DeviceBroken, match="for queue 1"):
        port._transport.reset()


@pytest.mark.rule("BAS-010", "BAS-012")
def test_unknown_features_are_not_accepted(path, start):
    back_end = start()
    for request in (wire.GET_FEATURES, wire.GET_PROTOCOL_FEATURES):
        every = wire.answer(request, b"\xff" * 8)
        back_end.hooks[request] = lambda _, every=every: every
    accepted = {}
    for request in (wire.SET_FEATURES, wire.SET_PROTOCOL_FEATURES):

        def keep(message: wire.Message, request: int = request) -> bytes:
            accepted[request] = struct.unpack("<Q", message.payload)[0]
            return back_end.close_link()

        back_end.hooks[request] = keep
    with pytest.raises(DeviceGone):
        open_port(path)
    assert accepted == {wire.SET_PROTOCOL_FEATURES: wire.EVERYTHING}


def test_what_nobody_asked_for(path, start):
    back_end = start()
    with open_port(path) as port:
        back_end.say(wire.answer(wire.GET_FEATURES, U64))
        assert isinstance(error := poll_until_error(port), DeviceBroken)
        assert "nobody asked" in str(error)
        with pytest.raises(DeviceBroken):
            port.recv_burst(1)
        port.reset()
        round_trip(port)


# ---- stalling


@pytest.fixture
def impatient(monkeypatch):
    """To be called when an answer is not to come: one that is to come may take its time."""
    return lambda: monkeypatch.setattr(vhost_messages, "ANSWER_SECONDS", 0.2)


def test_silence(path, start, impatient):
    start(hooks={wire.GET_FEATURES: lambda _: b""})
    impatient()
    begin = time.monotonic()
    with pytest.raises(DeviceTimeout, match=r"GET_FEATURES came for 0\.2 s"):
        open_port(path)
    assert time.monotonic() - begin < 5


def test_an_answer_byte_by_byte_does_not_stretch_the_time(path, start, impatient):
    back_end, given_up, left = start(), threading.Event(), []

    def trickle(_: wire.Message) -> bytes:
        left.extend(wire.answer(wire.GET_FEATURES, U64)[:-1])
        while left and not given_up.wait(0.15):
            back_end._send(bytes([left.pop(0)]))
        return b""

    back_end.hooks[wire.GET_FEATURES] = trickle
    impatient()
    with pytest.raises(DeviceTimeout):
        open_port(path)
    assert left, "it waited for every byte"
    given_up.set()


def test_a_back_end_that_hangs_at_close(path, start, impatient):
    back_end = start()
    port = open_port(path)
    back_end.hooks[wire.GET_VRING_BASE] = lambda _: b""
    impatient()
    begin = time.monotonic()
    port.close()
    assert time.monotonic() - begin < 5


def test_memory_that_a_hanging_back_end_may_write_is_not_used_again(path, start, monkeypatch):
    back_end, ask = start(), Connection.ask_vring_state

    def ask_briefly(*words):
        with monkeypatch.context() as patch:
            patch.setattr(vhost_messages, "ANSWER_SECONDS", 0.2)
            return ask(*words)

    with open_port(path) as port:
        round_trip(port, 9014)
        before = port._memory
        back_end.hooks[wire.GET_VRING_BASE] = lambda _: b""
        with monkeypatch.context() as patch:
            patch.setattr(Connection, "ask_vring_state", ask_briefly)
            port.reset()
        assert port._memory is not before
        del back_end.hooks[wire.GET_VRING_BASE]
        round_trip(port, 60, 9014)
        assert conserved(port)


def test_eventfds_that_the_back_end_has_made_block(path, start):
    """It shares the open files: full, or empty, they hold up nobody."""
    back_end, files = start(), []

    def spoil(message):
        files.extend(os.dup(fd) for fd in message.fds)
        os.set_blocking(files[-1], True)
        if message.request == wire.SET_VRING_KICK:
            os.eventfd_write(files[-1], 2**64 - 2)

    back_end.hooks |= {
        wire.SET_VRING_KICK: spoil,
        wire.SET_VRING_CALL: spoil,
        wire.SET_VRING_ENABLE: lambda _: wire.answer(wire.SET_VRING_ENABLE, bytes(8)),
    }
    with open_port(path) as port:
        assert port.send_burst([bytes(60)]) == 1
        port.reset()
        assert port.send_burst([bytes(60)]) == 1
        back_end.hooks.clear()
        port.reset()
        round_trip(port)
    for fd in files:
        os.close(fd)


def _stalls_in_a_question(port, back_end, monkeypatch):
    back_end.hooks[wire.GET_CONFIG] = lambda _: b""
    with monkeypatch.context() as patch:
        patch.setattr(vhost_messages, "ANSWER_SECONDS", 0.2)
        with pytest.raises(DeviceTimeout):
            _ = port.link


def _stalls_at_new_memory(port, back_end, monkeypatch):
    back_end.hooks[wire.SET_MEM_TABLE] = lambda _: b""
    with monkeypatch.context() as patch:
        patch.setattr(vhost_messages, "ANSWER_SECONDS", 0.2)
        memory.allocate(1)


def _answers_with_something_else(port, back_end, _):
    back_end.hooks[wire.GET_CONFIG] = lambda _: wire.answer(wire.GET_FEATURES, U64)
    with pytest.raises(DeviceBroken):
        _ = port.link


def _says_what_nobody_asked_for(port, back_end, _):
    back_end.say(wire.answer(wire.GET_FEATURES, U64))
    assert isinstance(poll_until_error(port), DeviceBroken)


@pytest.mark.parametrize(
    "fail",
    [
        _stalls_in_a_question,
        _stalls_at_new_memory,
        _answers_with_something_else,
        _says_what_nobody_asked_for,
    ],
)
def test_who_is_not_talked_to_any_more_may_still_write(path, start, monkeypatch, fail):
    """Its memory is left to it: only a back end that hung up itself has let go of it."""
    back_end = start()
    with open_port(path) as port:
        before = port._memory
        fail(port, back_end, monkeypatch)
        back_end.hooks.clear()
        port.reset()
        assert port._memory is not before
        round_trip(port, 60, 9014)
        before = port._memory
        back_end.kill()
        assert isinstance(poll_until_error(port), DeviceGone)
        start()
        port.reset()
        assert port._memory is before


@pytest.fixture
def collected_here():
    """Collected in the back end's thread, memory would be told of to the one that is to hear it."""
    gc.disable()
    yield gc.collect
    gc.enable()


def test_resets_that_fail_leave_room_in_the_memory_table(path, start, monkeypatch, collected_here):
    """Each took fresh memory, and the table has eight places."""
    back_end = start()
    with open_port(path) as port:
        back_end.hooks[wire.SET_VRING_KICK] = lambda _: b""
        with monkeypatch.context() as patch:
            patch.setattr(vhost_messages, "ANSWER_SECONDS", 0.1)
            for _ in range(MAX_REGIONS + 1):
                with pytest.raises((DeviceTimeout, DeviceGone)):
                    port.reset()
                collected_here()
        back_end.hooks.clear()
        port.reset()
        round_trip(port, 60, 9014)


@pytest.mark.usefixtures("collected_here")
@pytest.mark.parametrize("protocol", [wire.EVERYTHING, wire.EVERYTHING & ~(1 << Protocol.STATUS)])
@pytest.mark.parametrize("options", [{}, {"reconnect": True}])
def test_one_that_stalls_as_rings_start_may_still_write(
    path, start, monkeypatch, options, protocol
):
    first = start()
    with open_port(path, **options) as port:
        before = port._memory
        first.kill()
        second = start(protocol=protocol)
        second.hooks[wire.SET_VRING_KICK] = second.hooks[wire.GET_VRING_BASE] = lambda _: b""
        with monkeypatch.context() as patch:
            patch.setattr(vhost_messages, "ANSWER_SECONDS", 0.2)
            if options:
                until(lambda: port._memory is not before, lambda: port.recv_burst(1))
            else:
                with pytest.raises((DeviceTimeout, DeviceGone)):
                    port.reset()
        second.hooks.clear()
        port.reset()
        assert port._memory is not before
        round_trip(port, 60, 9014)


def test_a_late_answer_is_not_taken_for_another(path, start, impatient):
    """After a time-out the connection is of no use: what comes later is out of step."""
    back_end = start()
    with open_port(path) as port:
        back_end.hooks[wire.GET_CONFIG] = lambda _: b""
        impatient()
        with pytest.raises(DeviceTimeout):
            _ = port.link
        with pytest.raises(DeviceGone, match="no answer to GET_CONFIG"):
            _ = port.link


def test_ctrl_c_in_an_exchange(path, start):
    """The answer under way is lost, and so is the connection; the port says so and mends."""
    back_end = start()
    with open_port(path) as port:

        def interrupt(_: wire.Message) -> bytes:
            os.kill(os.getpid(), signal.SIGINT)
            return b""

        back_end.hooks[wire.GET_CONFIG] = interrupt
        with pytest.raises(KeyboardInterrupt):
            _ = port.link
        del back_end.hooks[wire.GET_CONFIG]
        with pytest.raises(DeviceGone, match="interrupted"):
            _ = port.link
        port.reset()
        round_trip(port)
