"""tools/fuzz: clean on a driver that works, plain and replayable on one that does not."""

import gc
import json
import subprocess
import sys
import time
from dataclasses import replace
from random import Random

import pytest

from pyvirtnet import Port
from pyvirtnet.arena import Arena
from pyvirtnet.cli import fuzz
from pyvirtnet.cli._fuzz_caller import Caller
from pyvirtnet.cli._fuzz_clock import repeatable
from pyvirtnet.cli._fuzz_device import FuzzDevice
from pyvirtnet.cli._fuzz_round import Finding, Round
from pyvirtnet.control import queue
from pyvirtnet.negotiate import SUPPORTED, parse
from pyvirtnet.spec import Feature
from pyvirtnet.testing._liar import Liar

FUZZ = (sys.executable, "-P", "-m", "pyvirtnet.cli.fuzz")


def played(seed, number):
    """One round; what it did, and its tally of errors."""
    notes = []
    one = Round(seed, number, lambda steps, calls: notes.append(steps))
    one.play()
    return notes, one.errors


def without_threads(monkeypatch):
    """What a round does then follows from its seed, however busy the machine is."""
    monkeypatch.setattr(Round, "_crowd", lambda self, caller: self._calls(caller, 100))
    monkeypatch.setattr(Round, "ACCOMPLICES", 0.0)
    monkeypatch.setattr(Round, "FORKS", 0.0)


def play_all(seed, numbers):
    for number in range(numbers):
        played(seed, number)


def test_a_short_run_is_clean():
    """tools/test --fuzz is a longer one, with sanitizers."""
    command = (*FUZZ, "--steps", "100000", "--seed", "2", "--json")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["steps"] >= 100000
    assert report["rounds"] > 0
    assert report["found"] is None
    assert {"DeviceBroken", "PortClosed", "TypeError"} <= set(report["errors"])


def test_a_round_without_threads_is_played_again_exactly(monkeypatch):
    """It follows from its seed and number: not from time, nor from what was played before."""
    without_threads(monkeypatch)
    first = [played(5, number) for number in range(5)]
    assert [played(5, number) for number in reversed(range(5))] == first[::-1]
    assert sum(sum(notes) for notes, _ in first) > 1000


def test_time_goes_on_by_looking_at_it():
    with repeatable():
        clock = queue.time
        before = clock.monotonic()
        clock.sleep(5.0)
        assert 5.0 < clock.monotonic() - before < 8
    assert queue.time is time


def reported(capsys, *arguments):
    """The exit status and what a run says."""
    status = fuzz.main(["--seconds", "20", "--seed", "7", *arguments])
    return status, capsys.readouterr()


def worker(monkeypatch, tmp_path, body):
    """A worker that does this instead."""
    lines = "import os, struct, sys, time, mmap, faulthandler\nfaulthandler.enable()\n"
    lines += "fd = int([a for a in sys.argv if a.startswith('--fd=')][0][5:])\n"
    (tmp_path / "bad_worker.py").write_text(lines + body)
    monkeypatch.setattr(fuzz, "WORKER", "bad_worker")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def test_a_crash_is_told_with_its_place_and_the_command_that_repeats_it(
    monkeypatch, tmp_path, capsys
):
    body = "mmap.mmap(fd, 40)[:] = struct.pack('<5Q', 3, 1234, 9, 0, 3)\nos.abort()\n"
    worker(monkeypatch, tmp_path, body)
    status, said = reported(capsys)
    assert status == 1
    assert "it ended with -6" in said.err
    assert "Fatal Python error: Aborted" in said.err
    assert "seed 7, round 3, step 1234" in said.err
    assert "tools/fuzz --seed 7 --round 3" in said.err


def test_a_hang_is_found_and_says_where(monkeypatch, tmp_path, capsys):
    worker(monkeypatch, tmp_path, "def stuck():\n    time.sleep(600)\nstuck()\n")
    monkeypatch.setattr(fuzz, "HANG", 2.0)
    status, said = reported(capsys)
    assert status == 1
    assert "it hung" in said.err
    assert "in stuck" in said.err


@pytest.mark.parametrize("body", ["sys.stderr.write('odd')", "", "sys.exit(3)"])
def test_a_process_that_does_not_end_well_is_a_finding(monkeypatch, tmp_path, capsys, body):
    worker(monkeypatch, tmp_path, body)
    assert reported(capsys)[0] == 1


# What the rounds find in a driver that is not right.


def found(monkeypatch, kind=Finding):
    without_threads(monkeypatch)
    with pytest.raises(kind) as error:
        play_all(11, 40)
    gc.collect()
    return str(error.value)


@pytest.fixture
def hoard():
    """Things that a broken driver forgets about."""
    things = []
    yield things
    things.clear()
    gc.collect()


def test_a_burst_that_is_never_given_back_is_found(monkeypatch, hoard):
    receive = Caller.receive

    def hoarding(self):
        receive(self)
        hoard.extend(self.kept[-1:])

    monkeypatch.setattr(Caller, "receive", hoarding)
    assert "missing" in found(monkeypatch) or "nobody has" in found(monkeypatch)


def test_an_error_that_may_not_be_is_found(monkeypatch):
    def broken(self):
        raise KeyError("no such thing")

    monkeypatch.setattr(Port, "info", broken)
    assert "no such thing" in found(monkeypatch, KeyError)


def test_memory_that_stays_is_found(monkeypatch, hoard):
    take = Arena.take

    def hoarding(self, size):
        hoard.append(take(self, size))
        return take(self, size)

    monkeypatch.setattr(Arena, "take", hoarding)
    assert "nobody has" in found(monkeypatch)


def test_a_frame_that_is_not_counted_is_found(monkeypatch):
    stats = Port.stats.fget
    forgetful = property(lambda self: replace(stats(self), rx_lost=0))
    monkeypatch.setattr(Port, "stats", forgetful)
    assert "delivered" in found(monkeypatch)


# The device's side


def test_a_liar_has_no_ring_outside_of_what_it_was_shown():
    liar = Liar(1, 0.0)
    memory = bytearray(1 << 16)
    liar.map(1 << 32, 1 << 16, id(memory))
    for addresses in ((0, 0, 0), (1 << 32, 1 << 32, (1 << 32) + 65536)):
        with pytest.raises(LookupError):
            liar.enable(0, 8, *addresses)
    for index, size in ((0, 0), (0, 3), (3, 4), (0, 1 << 16)):
        with pytest.raises(ValueError):
            liar.enable(index, size, 1 << 32, 1 << 32, 1 << 32)
    liar.act(1000)
    assert liar.steps == liar.delivered == liar.faults == 0


BIG = ("-mrg_rxbuf", "+guest_csum", "+guest_tso4")
ROWS = [(), ("-ring_packed",), ("-in_order",), ("-mrg_rxbuf",), ("+hash_report",), BIG,
        (*BIG, "-ring_packed", "-in_order", "-indirect_desc"), "legacy"]  # fmt: skip


@pytest.mark.parametrize("start", [0, 0xFFF0])
@pytest.mark.parametrize("features", ROWS)
def test_a_liar_that_does_not_lie_is_a_device(features, start):
    """What it delivers is received, what it is sent it is done with."""
    device = FuzzDevice(Random(4), 0.0)
    device._bits, device.start_index = sum(1 << feature for feature in SUPPORTED), start
    device._mtu = 65535
    if features == "legacy":
        device._become_legacy()
        features = ("-mrg_rxbuf",)
    sent = 0
    with Port(device, wanted=parse(features)) as port:
        tx = port.alloc_burst(16, 60)
        for turn in range(2000):
            device.act(8)
            port.recv_burst(64)
            sent += port.send_burst(tx) + port.send_burst([bytes(4000)])
            if turn % 500 == 499 and Feature.RING_RESET in port.features.negotiated:
                port.queues[0].reset()
        stats = port.stats
        received = stats.rx_frames + stats.rx_runts + stats.rx_bad_headers + stats.rx_lost
        waiting = device.liar.delivered - received
        assert stats.rx_frames > 500
        assert 0 <= waiting <= 256
        assert stats.tx_frames == sent > 1000
        assert stats.tx_reclaimed + stats.tx_lost >= sent - 256
        assert device.liar.faults == 0
