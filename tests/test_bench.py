"""tools/bench: its judges run from end to end, and none of them passes what it should refuse."""

import csv
import io
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from needs import needs_dpdk, needs_root, needs_valgrind

import pyvirtnet
from pyvirtnet import Port
from pyvirtnet.cli import (
    _bench_report,
    _bench_sweep,
    _bench_testpmd,
    _bench_traffic,
    _bench_vm,
    bench,
)
from pyvirtnet.cli._bench_core import growth
from pyvirtnet.cli._bench_latency import percentiles
from pyvirtnet.cli._bench_report import compiled_with
from pyvirtnet.cli._bench_testpmd import SEED_BURST, Counters, parse_stats
from pyvirtnet.cli._bench_vs_dpdk import SEED, SIZE, await_count, summary, unequal

BENCH = [sys.executable, "-P", "-m", "pyvirtnet.cli.bench"]
STORED = Path(__file__).parents[1] / "docs/benchmarks/core.json"


def run(*words: str) -> dict[str, Any]:
    done = subprocess.run([*BENCH, *words, "--json"], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


# ---- judges from end to end


def test_queues_counts_what_a_thread_for_each_pair_moves() -> None:
    result = run("queues", "--time", "0.01")
    cases = [(row["each"], row["mode"], row["burst"], row["pairs"]) for row in result["rows"]]
    assert len(cases) == len(set(cases)) == 54
    assert all(row["mpps"] > 0 and row["times_one"] > 0 for row in result["rows"])
    assert all(row["times_one"] == 1 for row in result["rows"] if row["pairs"] == 1)
    table = "\n".join(bench._judge("queues").lines(result))
    assert "This Python has a GIL" in table


@needs_dpdk
def test_vs_dpdk_compares_every_mode() -> None:
    result = run("vs-dpdk", "--pairs", "1", "--seconds", "0.2")
    assert list(result["modes"]) == ["rx", "tx", "txresend", "io", "macswap"]
    for row in result["modes"].values():
        ((ours, theirs),) = row["pairs"]
        assert (ours, theirs) == (row["pyvirtnet_mpps"], row["dpdk_mpps"])
        assert ours >= 0
        assert theirs >= 0
        assert row["ratio"] > 0
    assert result["machine"]["dpdk"].startswith("DPDK ")


@needs_dpdk
@needs_root
def test_latency_of_both_ways() -> None:
    result = run("latency", "--runs", "1", "--seconds", "0.2")
    rows = result["round_trip"]
    assert len(rows) == 3
    for row in rows.values():
        assert row["round_trips"] > 0
        assert 0 < row["least_us"] <= row["p50_us"] <= row["p99_us"] <= row["p99.9_us"]
    listed = subprocess.run(["ip", "netns", "list"], check=True, capture_output=True, text=True)
    assert f"pyvirtnet-{os.getpid()}" not in listed.stdout


@needs_dpdk
def test_sweep_writes_a_row_for_every_point(tmp_path: Path) -> None:
    result = run("sweep", "--quick", "--rounds", "2", "--seconds", "0.05", "--out", str(tmp_path))
    with open(tmp_path / "sweep.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(result["rows"]) == 12
    assert {(row["mode"], row["varied"]) for row in rows} == {
        (mode, varied) for mode in ("receive", "forward") for varied in ("burst", "size", "ring")
    }
    assert {row["size"] for row in rows} == {"60", "9014"}
    for row in result["rows"]:
        assert 0 <= row["least_mpps"] <= row["mpps"] <= row["most_mpps"] > 0


@needs_dpdk
def test_ctrl_c_ends_the_processes_too() -> None:
    command = [*BENCH, "vs-dpdk", "--seconds", "0.5", "--pairs", "100000", "--modes", "rx"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            said = ""
            while "pair 1 of" not in said:
                said += (line := process.stderr.readline())
                assert line, f"it ended by itself: {said}"
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            assert len(children) == 2
            ends = [os.pidfd_open(int(pid)) for pid in children]
            process.send_signal(signal.SIGINT)
            process.stderr.read()
            assert process.wait(30) == 128 + signal.SIGINT
        finally:
            process.kill()
    for end in ends:
        assert select.select([end], [], [], 10)[0], "a testpmd outlives the tool"
        os.close(end)


def test_without_dpdk_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name, pages in (("nr_hugepages", 1024), ("free_hugepages", 1024)):
        (tmp_path / name).write_text(str(pages))
    monkeypatch.setattr(_bench_testpmd, "_HUGE", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert bench.main(["vs-dpdk"]) == 3
    assert "apt-get install dpdk-dev" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["vs-dpdk", "--modes", "rx,dance"],
        ["vs-dpdk", "--pairs", "0"],
        ["vs-dpdk", "--seconds", "-1"],
        ["latency", "--runs", "x"],
        ["vm", "--sizes", "59"],
        [],
    ],
)
def test_wrong_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        bench.main(words)
    assert error.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("pyvirtnet bench")


# ---- instructions


@pytest.mark.unsanitized("valgrind runs no program that has a sanitizer")
@needs_valgrind
@pytest.mark.parametrize("name", ["core", "core-packed"])
def test_no_frame_costs_more_instructions_than_stored(name: str) -> None:
    """If it does, make it cheaper; or, with a reason, `tools/bench all --only core`."""
    words = [word for word in bench.RUNS[name] if word != "--callgrind"]
    done = subprocess.run(
        [*BENCH, *words, "--frames", "1", "--against", str(STORED.with_name(f"{name}.json"))],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def core_result(instructions: float, **facts: str) -> dict[str, Any]:
    row = {"mode": "receive", "burst": 32, "ns": 1.0, "instructions": instructions}
    return {"rows": [row], "machine": {**compiled_with(), **facts}}


@pytest.mark.parametrize(
    ("now", "compiler", "grown"),
    [
        (104.9, None, False),
        (105.1, None, True),
        (50.0, None, False),
        (124.0, "GCC: (other) 1.0", False),
        (126.0, "GCC: (other) 1.0", True),
    ],
)
def test_growth_is_seen(now: float, compiler: str | None, grown: bool) -> None:
    facts = {"compiler": compiler} if compiler else {}
    assert bool(growth(core_result(now), core_result(100.0, **facts))) is grown


def test_growth_with_other_cases_is_no_comparison() -> None:
    other = core_result(100.0)
    other["rows"][0]["burst"] = 64
    assert growth(core_result(1.0), other)


def test_modules_tell_their_compiler() -> None:
    facts = compiled_with()
    assert "unknown" not in facts.values()


# ---- what is equal work


def stats(rx: int = 0, tx: int = 0) -> Counters:
    return Counters(rx, tx, rx * SIZE, tx * SIZE, 0, 0)


SEEDED = SEED * SEED_BURST


@pytest.mark.parametrize(
    ("mode", "went", "device"),
    [
        ("rx", (1000, 0), stats(tx=1000)),
        ("tx", (0, 1000), stats(rx=1000)),
        ("io", (1000, 1000), stats(rx=1000 - SEEDED, tx=1000)),
    ],
)
def test_whole_work_is_equal(mode: str, went: tuple[int, int], device: Counters) -> None:
    octets = (went[0] * SIZE, went[1] * SIZE)
    assert unequal(mode, went + octets, device) == ""
    assert unequal(mode, (*went, octets[0] + 1, octets[1]), device)
    assert unequal(mode, (*went, octets[0], octets[1] - 1), device)
    for lost in (stats(device.rx - 1, device.tx), stats(device.rx, device.tx + 1)):
        assert unequal(mode, went + octets, lost)


def test_a_side_that_gets_no_processor_for_a_while_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was stopped before it had taken what the device had sent: the work seemed unequal."""
    arrived = [0, 0, 30, 30, 100]
    await_count(lambda: arrived.pop(0), 100)
    assert arrived == []
    monkeypatch.setattr("pyvirtnet.cli._bench_vs_dpdk.SETTLE", 0.01)
    await_count(lambda: 99, 100)  # one is lost: not for ever


def test_no_work_is_not_equal() -> None:
    assert unequal("rx", (0, 0, 0, 0), stats())


def test_frames_that_stop_going_round_are_seen() -> None:
    went = (1000, 1000, 1000 * SIZE, 1000 * SIZE)
    assert "going round" in unequal("io", went, stats(rx=1000 - SEEDED + 1, tx=1000))


def test_the_ratio_is_the_median_of_the_pairs_own() -> None:
    row = summary([[10.0, 20.0], [30.0, 10.0], [9.0, 8.0]])
    assert row["pyvirtnet_mpps"] == 10.0
    assert row["dpdk_mpps"] == 10.0
    assert row["ratio"] == 1.125
    assert row["ratios"] == [0.5, 3.0]


# ---- the loops


@pytest.fixture
def cable() -> Iterator[tuple[Port, Port]]:
    with pyvirtnet.open("sim:cable/bench/0") as near, pyvirtnet.open("sim:cable/bench/1") as far:
        yield near, far


@pytest.mark.parametrize("loop", [_bench_traffic.forward, _bench_traffic.macswap])
def test_loops_do_to_frames_what_they_say(cable: tuple[Port, Port], loop: Any) -> None:
    near, far = cable
    frame = bytes(_bench_traffic.frame_of(200))
    assert near.send_burst([frame] * 5) == 5
    assert loop(far, 64, 1)() == 5
    expected = frame if loop is _bench_traffic.forward else frame[6:12] + frame[:6] + frame[12:]
    assert [bytes(one) for one in near.recv_burst(64)] == [expected] * 5


@pytest.mark.parametrize("loop", [_bench_traffic.transmit, _bench_traffic.resend])
def test_senders_send_whole_frames(cable: tuple[Port, Port], loop: Any) -> None:
    near, far = cable
    frame = bytes(_bench_traffic.frame_of(SIZE))
    assert loop(near, 32, SIZE)() > 0
    assert {bytes(one) for one in far.recv_burst(256)} == {frame}


def test_transmit_writes_every_frame_anew(cable: tuple[Port, Port]) -> None:
    near, far = cable
    bursts = []
    allocate = near.alloc_burst
    near.alloc_burst = lambda n, size: bursts.append(allocate(n, size)) or bursts[-1]  # type: ignore[method-assign,func-returns-value]
    step = _bench_traffic.transmit(near, 32, SIZE)
    assert all(not tx.data.any() for tx in bursts)
    _drained(far, step)
    for tx in bursts:
        tx.data[:] = 0xFF
    _drained(far, step)
    assert all((tx.data == _bench_traffic.frame_of(SIZE)).all() for tx in bursts)


def _drained(far: Port, step: Any) -> None:
    step()
    while len(far.recv_burst(256)):
        continue


def test_percentiles() -> None:
    row = percentiles(range(1000, 1001000, 1000))
    assert row == {
        "round_trips": 1000,
        "least_us": 1.0,
        "p50_us": 501.0,
        "p99_us": 991.0,
        "p99.9_us": 1000.0,
    }


# ---- what others had of the machine


@pytest.mark.parametrize(("own", "share"), [(4.0, "30%"), (9.9, "0%"), (10.1, "0%")])
def test_what_others_take_is_told(
    own: float, share: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both processors were looked at for ten seconds, and had worked for ten."""
    for name, values in (("_busy", [5.0, 15.0]), ("_own", [1.0, 1.0 + own])):
        monkeypatch.setattr(_bench_report, name, iter(values).__next__)
    clock = SimpleNamespace(monotonic=iter([100.0, 110.0]).__next__)
    monkeypatch.setattr(_bench_report, "time", clock)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    result = _bench_report.watched(lambda: {"machine": {}})
    assert result["machine"]["others"] == f"{share} of the processors"
    assert ("will say little" in capsys.readouterr().err) is (share != "0%")


def test_processes_that_were_awaited_are_ones_own() -> None:
    busy, own = _bench_report._busy(), _bench_report._own()
    subprocess.run([sys.executable, "-c", "sum(range(10_000_000))"], check=True)
    worked = _bench_report._own() - own
    assert worked > 0.05
    assert _bench_report._busy() - busy >= worked - 0.1


# ---- sweep and vm


def test_without_matplotlib_there_is_a_plain_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert _bench_sweep.plot([], tmp_path / "sweep.svg") == []
    assert "pip install 'pyvirtnet[plot]'" in capsys.readouterr().err


def test_without_the_right_the_device_has_no_priority(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_bench_vm, "HARDWARE", ["false"])
    assert _bench_vm.hardware() == []
    assert "run this with sudo" in capsys.readouterr().err


def went(pps: float) -> dict[str, float]:
    return {"sent": 100, "received": 90, "pps": pps}


def test_rounds_in_the_guest_become_medians() -> None:
    rounds = [
        [["pyvirtnet", 60, went(300.0)], ["dpdk", 60, went(100.0)]],
        [["dpdk", 60, went(300.0)], ["pyvirtnet", 60, went(150.0)]],
        [["pyvirtnet", 60, went(200.0)], ["dpdk", 60, went(200.0)]],
    ]
    ours, theirs = _bench_vm.rows(rounds, [60])
    assert (ours["tool"], ours["pps"], ours["ratio"]) == ("pyvirtnet", 200, 1.0)
    assert (theirs["tool"], theirs["pps"], theirs["ratio"]) == ("dpdk", 200, 1.0)
    assert theirs["rounds"] == [100, 300, 200]
    assert (theirs["sent"], theirs["received"]) == (300, 270)
    assert "10.0%" in _bench_vm.lines({"rows": [ours, theirs]})[1]


# ---- DPDK's testpmd


def test_counters_are_read() -> None:
    text = """
  RX-packets: 12         RX-missed: 3          RX-bytes:  768
  RX-errors: 0
  RX-nombuf:  0
  TX-packets: 7          TX-errors: 0          TX-bytes:  448

  Throughput (since last show)
  Rx-pps:     11111111          Rx-bps:            5
  Tx-pps:     22222222          Tx-bps:            6
"""
    assert parse_stats(text) == Counters(12, 7, 768, 448, 11111111, 22222222)


def huge(folder: Path, total: int, free: int) -> None:
    (folder / "nr_hugepages").write_text(str(total))
    (folder / "free_hugepages").write_text(str(free))


def test_missing_huge_pages_are_reserved_and_given_back(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(_bench_testpmd, "_HUGE", tmp_path)
    monkeypatch.setattr(_bench_testpmd, "_program", str)
    huge(tmp_path, 10, 4)

    def reserve(pages: int) -> None:
        huge(tmp_path, pages, pages - 6)

    monkeypatch.setattr(_bench_testpmd, "_reserve", reserve)
    with _bench_testpmd.huge_pages(100):
        assert (tmp_path / "nr_hugepages").read_text() == "106"
    assert (tmp_path / "nr_hugepages").read_text() == "10"


def test_huge_pages_that_others_take_at_once_are_reserved_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(_bench_testpmd, "_HUGE", tmp_path)
    monkeypatch.setattr(_bench_testpmd, "_program", str)
    huge(tmp_path, 0, 0)
    monkeypatch.setattr(_bench_testpmd, "_reserve", lambda n: huge(tmp_path, n, max(0, n - 2)))
    with _bench_testpmd.huge_pages(100):
        assert (tmp_path / "free_hugepages").read_text() == "100"
        huge(tmp_path, 102, 50)  # and again later
        assert _bench_testpmd.refill(80)
        assert (tmp_path / "free_hugepages").read_text() == "130"
    assert (tmp_path / "nr_hugepages").read_text() == "0"


def test_no_huge_pages_are_reserved_for_a_dpdk_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(_bench_testpmd, "_HUGE", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    huge(tmp_path, 0, 0)
    with pytest.raises(pyvirtnet.NoSuchDevice, match="it is not installed"):
        with _bench_testpmd.huge_pages(100):
            pytest.fail("there is no DPDK")
    assert (tmp_path / "nr_hugepages").read_text() == "0"


def test_two_benches_at_once_take_turns(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The first to end took the pages of the other one with it."""
    said = io.StringIO()
    monkeypatch.setattr(sys, "stderr", said)
    monkeypatch.setattr(_bench_testpmd, "_HUGE", tmp_path)
    monkeypatch.setattr(_bench_testpmd, "_program", str)
    huge(tmp_path, 10, 10)
    inside: list[bool] = []

    def second() -> None:
        with _bench_testpmd.huge_pages(5):
            inside.append(True)

    thread = threading.Thread(target=second)
    with _bench_testpmd.huge_pages(5):
        thread.start()
        while "waiting" not in said.getvalue():
            time.sleep(0.001)
        assert not inside
    thread.join()
    assert inside


def test_huge_pages_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_bench_testpmd, "_HUGE", tmp_path)
    monkeypatch.setattr(_bench_testpmd, "_program", str)
    huge(tmp_path, 10, 4)
    with pytest.raises(pyvirtnet.OutOfMemory, match="4 of 100 pages"):
        with _bench_testpmd.huge_pages(100):
            pytest.fail("there are too few")
    assert (tmp_path / "nr_hugepages").read_text() == "10"


def test_a_kernel_without_huge_pages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_bench_testpmd, "_HUGE", tmp_path)
    monkeypatch.setattr(_bench_testpmd, "_program", str)
    with pytest.raises(pyvirtnet.OutOfMemory, match="HUGETLBFS"):
        with _bench_testpmd.huge_pages(1):
            pytest.fail("there are none")


def test_one_core_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    with pytest.raises(pyvirtnet.Error, match="a core each"):
        _bench_testpmd.cores()


def test_every_judge_has_a_page(tmp_path: Path) -> None:
    """`all` writes every result it has to one page; here, the stored one."""
    shutil.copy(STORED, tmp_path / "core.json")
    bench.write_page(tmp_path)
    page = (tmp_path / "README.md").read_text()
    assert "## core" in page
    assert "forward" in page
    assert "## vs-dpdk" not in page
