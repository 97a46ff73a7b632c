"""tools/soak: what passes, what fails, and how it ends; a million frames through DPDK's testpmd."""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
from typing import Any

import pytest
from needs import needs_testpmd

import pyvirtnet
from pyvirtnet.cli import _soak_loop, soak
from pyvirtnet.cli._pktgen_traffic import Stop
from pyvirtnet.port import Port
from pyvirtnet.testing import Loopback
from pyvirtnet.transport.sim import SimTransport

SOAK = [sys.executable, "-P", "-m", "pyvirtnet.cli.soak"]
CLEAN = dict.fromkeys(("lost", "duplicated", "reordered", "corrupt", "foreign"), 0)


@pytest.mark.unsanitized("its memory grows: what was freed is kept for a while")
@needs_testpmd
@pytest.mark.parametrize("rings", ["split", "packed"])
def test_half_a_million_frames_of_several_sizes_through_testpmd(rings):
    words = ["--without", "ring_packed"] if rings == "split" else []
    done = subprocess.run(
        [*SOAK, "--frames", "5e5", "--json", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    assert result["passed"]
    assert result["ring_format"] == rings
    assert 500_000 <= result["frames"] == result["received"]
    assert CLEAN.items() <= result.items()
    assert result["device"] == {"rx": result["frames"], "tx": result["frames"]}
    assert result["counters"]["rx_buffers"] > result["frames"]
    assert len(result["memory_kib"]["samples"]) == soak.SAMPLES + 1
    assert result["machine"]["dpdk"].startswith("DPDK")


@pytest.mark.unsanitized("its memory grows: what was freed is kept for a while")
def test_in_words():
    """In a process of its own: the size of this one depends on what ran before."""
    command = [*SOAK, "--device", "sim:loopback", "--frames", "2e3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    out = done.stdout
    assert " came back in " in out
    assert "0 lost, 0 duplicated, 0 reordered, 0 corrupt, 0 foreign" in out
    assert out.endswith("passed\n")


def options(*words: str) -> argparse.Namespace:
    return soak.parser().parse_args(words)


def soaked(port: Port, frames: int) -> dict[str, Any]:
    given = options("--frames", str(frames), "--burst", "8", "--sizes", "60")
    return soak.soak(port, given, Stop(), lambda *_: None)


@pytest.mark.parametrize(
    ("device", "sizes"),
    [
        ("", [60, 1514, 9014]),
        ("?mtu=1500", [60, 1514]),
        ("?mtu=1000", [60]),
        ("?mrg_rxbuf=off", [60, 1514]),
        ("?queue_size=2", [60, 1514]),
    ],
)
def test_the_mix_has_the_sizes_that_the_port_sends_and_takes_back(device, sizes):
    with pyvirtnet.open(f"sim:loopback{device}") as port:
        result = soak.soak(port, options("--frames", "300"), Stop(), lambda *_: None)
    assert list(result["sizes"]) == sizes
    assert 300 <= result["received"] == result["frames"]
    assert CLEAN.items() <= result.items()


@pytest.mark.parametrize(("device", "most"), [("?mtu=1500", 1514), ("?mrg_rxbuf=off", 4084)])
def test_a_size_that_does_not_fit_is_one_error(capsys, device, most):
    words = ["--device", f"sim:loopback{device}", "--sizes", f"60,{most + 1}"]
    assert soak.main(words) == 1
    what, mend = capsys.readouterr().err.splitlines()[-2:]
    assert f"cannot send {most + 1} bytes and take them back: " in what
    assert mend == f"  mend: --sizes {most} or less"


class Faulty(Loopback):
    """Does something to the frame of each burst that it is told to."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.count = 0

    def take(self, *arguments: Any, **options: Any) -> list[bytes]:
        frames = super().take(*arguments, **options)
        self.count += len(frames)
        if len(frames) < 2 or self.count < 500 or not self.fault:
            return frames
        fault, self.fault = self.fault, ""
        if fault == "lost":
            return frames[1:]
        if fault == "duplicated":
            return [frames[0], *frames]
        if fault == "reordered":
            return [frames[1], frames[0], *frames[2:]]
        if fault == "corrupt":
            return [frames[0][:-1] + bytes([frames[0][-1] ^ 1]), *frames[1:]]
        return [bytes(60), *frames]


@pytest.mark.parametrize("fault", list(CLEAN))
def test_what_becomes_of_one_frame_is_seen(monkeypatch, fault):
    monkeypatch.setattr(_soak_loop, "SILENCE", 2 * soak.SLICE)
    with Port(SimTransport(Faulty(fault), "sim:faulty")) as port:
        result = soaked(port, 2000)
    assert not result["passed"]
    assert result[fault] == 1
    assert sum(result[name] for name in CLEAN) == 1


def test_memory_that_grows_fails(monkeypatch):
    monkeypatch.setattr(soak, "resident", iter(range(10_000, 10**9, 50)).__next__)
    with pyvirtnet.open("sim:loopback") as port:
        result = soaked(port, 1000)
    assert (result["memory_kib"]["growth"], result["passed"]) == (50 * soak.SAMPLES, False)


def test_a_descriptor_that_stays_open_fails(monkeypatch):
    monkeypatch.setattr(soak, "descriptors", iter((10, 11)).__next__)
    with pyvirtnet.open("sim:loopback") as port:
        result = soaked(port, 1000)
    assert (result["descriptors_left"], result["passed"]) == (1, False)


def test_sleeping_for_frames_leaves_no_descriptor(monkeypatch):
    monkeypatch.setattr(_soak_loop, "PATIENCE", 1)  # as where driver and device share a core
    monkeypatch.setattr(soak, "resident", lambda: 10_000)
    with pyvirtnet.open("sim:loopback") as port:
        result = soaked(port, 1000)
    assert (result["descriptors_left"], result["passed"]) == (0, True)


def test_a_page_that_is_held_fails():
    with pyvirtnet.open("sim:loopback") as port:
        port.send_burst([bytes(3000)])
        held = port.recv_burst(1)
        result = soaked(port, 1000)
        assert len(held) == 1
    assert (result["pages_missing"], result["passed"]) == (1, False)


def test_ctrl_c_ends_with_the_figures_so_far():
    command = [*SOAK, "--device", "sim:loopback", "--frames", "1e9", "--json"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        while "frames" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    result = json.loads(out)
    assert 0 < result["received"] == result["frames"] < 1e9
    assert CLEAN.items() <= result.items()
    assert (result["interrupted"], result["passed"]) == (True, False)


@pytest.mark.parametrize(("lost", "last"), [(0, "interrupted"), (1, "FAILED")])
def test_an_interrupted_run_does_not_say_that_it_passed(lost, last):
    stop = Stop()

    def interrupt(*_: object) -> None:
        stop.signal = signal.SIGINT

    with pyvirtnet.open("sim:loopback") as port:
        result = soak.soak(port, options("--frames", "1e9", "--sizes", "60"), stop, interrupt)
    assert CLEAN.items() <= result.items()
    assert (result["interrupted"], result["passed"]) == (True, False)
    assert soak.lines(result | {"lost": lost})[-1] == last


@pytest.mark.parametrize(
    "words",
    [
        ["--frames", "0"],
        ["--frames", "x"],
        ["--burst", "0"],
        ["--sizes", "60,20"],
        ["--without", "wings"],
        ["x"],
    ],
)
def test_wrong_usage(words, capsys):
    with pytest.raises(SystemExit) as caught:
        soak.main(words)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("pyvirtnet soak: ")


def test_a_device_that_is_not_there(capsys):
    assert soak.main(["--device", "vhost-user:/nowhere"]) == 3
    assert "start the back end first" in capsys.readouterr().err
