"""tools/bench papers: what its peer sends, what its rounds become, and a run from end to end."""

import json
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from needs import needs_root
from nic import PLAIN, frames

from pyvirtnet.cli import _bench_papers as papers
from pyvirtnet.cli._bench_papers_guest import Interrupts, _ask
from pyvirtnet.cli._bench_papers_peer import ETHERTYPE, FOR_EVER, HEADERS, frame, order
from pyvirtnet.testing import mask


@pytest.mark.parametrize("size", papers.SIZES)
def test_frames_of_the_peer_are_tcp_segments(size: int) -> None:
    data = frame(size)
    assert len(data) == 10 + size
    flags, kind, header, segment, start, offset = struct.unpack_from("<BBHHHH", data)
    if size > 1514:
        assert (flags, kind, header, segment, start, offset) == (1, 1, HEADERS, 1460, 34, 16)
        assert (size - HEADERS) % segment == 0
    else:
        assert data[:10] == bytes(10)
    ip = data[10 + 14 :]
    assert (ip[0], struct.unpack_from(">H", ip, 2)[0], ip[9]) == (0x45, size - 14, 6)


def test_what_the_guest_asks_for() -> None:
    heard = order(1514)
    assert len(heard) == 60
    assert struct.unpack_from(">HII", heard, 12) == (ETHERTYPE, 1514, FOR_EVER)


def received(mode: str, pps: float, holds: int) -> list[Any]:
    row = {"mode": mode, "size": 1514, "pps": pps, "holds": holds, "late_pps": 2 * holds}
    return ["receive", row]


def sent(mode: str, pps: float) -> list[Any]:
    row = {"mode": mode, "burst": 32, "size": 60, "pps": pps, "kicks": 5.0, "interrupts": 3.0}
    return ["transmit", row]


def test_rounds_become_medians_and_ratios_of_pairs(tmp_path: Path) -> None:
    rounds = [
        [received("mergeable", 300, 256), received("big", 100, 15), sent("lazy", 60)],
        [received("mergeable", 400, 256), received("big", 200, 15), sent("lazy", 90)],
        [received("mergeable", 900, 256), received("big", 900, 15), sent("lazy", 30)],
    ]
    for one in rounds:
        one.append(sent("interrupts", 30))
    found = papers.rows(rounds, "receive")
    assert [row["mode"] for row in found] == ["mergeable", "big"]
    assert (found[0]["pps"], found[0]["ratio"], found[0]["holds"]) == (400, 2.0, 256)
    assert (found[1]["pps"], found[1]["ratio"], found[1]["rounds"]) == (200, 1.0, [100, 200, 900])
    assert (found[0]["late_pps"], found[0]["late_ratio"]) == (512, 17.07)
    assert found[0]["gbps"] == round(400 * 1514 * 8 / 1e9, 3)
    lazy, interrupts = papers.rows(rounds, "transmit")
    assert (lazy["ratio"], interrupts["ratio"], lazy["burst"]) == (2.0, 1.0, 32)
    text = papers.lines({"receive": found, "transmit": [lazy, interrupts]})
    assert "2.00 x" in text[1]
    assert len(text) == 7


@needs_root
@pytest.mark.timeout(900)  # a guest, and the package built for it, on whatever machine
def test_both_experiments_from_end_to_end(tmp_path: Path) -> None:
    words = ["papers", "--quick", "--rounds", "1", "--seconds", "0.2", "--json"]
    command = [sys.executable, "-P", "-m", "pyvirtnet.cli.bench", *words, "--out", str(tmp_path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    holds = {row["mode"]: row["holds"] for row in result["receive"]}
    assert holds == {"mergeable": 256, "big": 15, "big, indirect": 256}
    sending = {row["mode"]: row for row in result["transmit"]}
    assert list(sending) == ["lazy", "every call", "interrupts"]
    assert all(row["pps"] and row["kicks"] for row in sending.values())
    asked = {mode for mode, row in sending.items() if row["interrupts"]}
    assert asked == {"interrupts"}


KINDS = [(), ("ring_packed",), ("event_idx",), ("ring_packed", "event_idx")]


@pytest.mark.parametrize("kind", KINDS)
def test_transmit_interrupts_come_only_when_the_experiment_asks(make_nic: Any, kind: Any) -> None:
    nic = make_nic(offered=PLAIN | mask(*kind))
    interrupts = Interrupts(nic.port)
    for turn in range(600):
        assert nic.port.send_burst(frames(2)) == 2
        nic.transmitted()
        if turn == 300:
            assert (interrupts.count(), nic.device.interrupts[1]) == (0, 0)
            interrupts.ask()
        elif turn > 300:
            interrupts.serve(full=False)
            assert nic.port.tx_pending == 0
    assert interrupts.count() == nic.device.interrupts[1] > 250


def test_an_interrupt_that_was_counted_before_it_was_served(make_nic: Any) -> None:
    """The measurement that began with one on its way never asked for another."""
    nic = make_nic(offered=PLAIN | mask("event_idx"))
    interrupts = Interrupts(nic.port)
    interrupts.ask()
    for turn in range(1, 4):
        assert nic.port.send_burst(frames(2)) == 2
        nic.transmitted()
        assert interrupts.count() == turn
        interrupts.serve(full=False)
        assert nic.port.tx_pending == 0


def test_an_order_has_left_before_anything_else_is_done(make_nic: Any) -> None:
    """The last one went down with the port, and the peer sent for ever."""
    nic = make_nic(offered=PLAIN)
    device = threading.Timer(0.1, nic.transmitted)
    device.start()
    _ask(nic.port, order(0))
    assert nic.port.tx_pending == 0
    device.join()
