"""pyvirtnet top: what running processes publish, and nothing of those that are gone."""

import json
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pyvirtnet
from pyvirtnet import Port
from pyvirtnet.cli import top
from pyvirtnet.errors import Error
from pyvirtnet.pcap import Writer
from pyvirtnet.publishing import snapshot

PROGRAM = """
import sys, pyvirtnet
with pyvirtnet.publish(), pyvirtnet.open("sim:loopback") as port:
    print("open", flush=True)
    sent = 0
    for line in sys.stdin:
        sent += port.send_burst([bytes(60)] * int(line))
        got = len(port.recv_burst(256))
        print(sent, flush=True)
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "run"
    monkeypatch.setenv("PYVIRTNET_RUN", str(folder))
    monkeypatch.setattr(top, "ANSWER_SECONDS", 30.0)
    return folder


@pytest.fixture
def port() -> Iterator[Port]:
    with pyvirtnet.open("sim:loopback") as made:
        yield made


@pytest.fixture
def other() -> Iterator[subprocess.Popen[str]]:
    """A process with a port, which sends as many frames as it is told."""
    command = [sys.executable, "-P", "-c", PROGRAM]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "open\n"
        yield process
        process.stdin.close()


def tell(process: subprocess.Popen[str], frames: int) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    print(frames, file=process.stdin, flush=True)
    process.stdout.readline()


def test_another_process_is_seen(other: subprocess.Popen[str]) -> None:
    tell(other, 7)
    (told,) = top.look().values()
    (port,) = [one for one in told["ports"] if one["name"] == "sim:loopback"]
    (queue,) = port["queues"]
    assert told["pid"] == other.pid
    assert (queue["tx_frames"], queue["rx_frames"], queue["rx_bytes"]) == (7, 7, 420)
    before = top.look()
    tell(other, 50)
    now = top.look()
    (row,) = top.figures(now[other.pid], before[other.pid])
    passed = now[other.pid]["time"] - before[other.pid]["time"]
    assert row["tx_pps"] == pytest.approx(50 / passed, rel=1e-4)
    assert row["rx_gbps"] == pytest.approx(50 * 480e-9 / passed, rel=0.01, abs=1e-6)
    assert row["drops"] == 0
    assert row["rx_ring_percent"] > 80


def test_the_command_tells_tables_and_json(
    other: subprocess.Popen[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--interval", "0.05", "--count", "2"]
    assert top.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[0].split()[:3] == ["PID", "PROGRAM", "PORT"]
    assert lines[1].split()[0] == str(other.pid)
    assert "sim:loopback" in lines[1]
    assert top.main([*words, "--json", str(other.pid)]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["queues"][0]["pid"] == second["queues"][0]["pid"] == other.pid
    assert top.main([*words, "1"]) == 1
    assert "no process publishes ports" in capsys.readouterr().out


def test_named_processes_are_looked_at_until_they_end(
    other: subprocess.Popen[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert other.stdin is not None
    threading.Timer(0.3, other.stdin.close).start()
    threading.Thread(target=other.wait).start()
    assert top.main(["--interval", "0.05", "--json", str(other.pid)]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[0])["queues"][0]["pid"] == other.pid
    assert top.main([str(other.pid)]) == 1
    told = capsys.readouterr().err
    assert f"there is no process {other.pid}" in told
    assert "mend: " in told


def test_without_a_terminal_it_says_once_that_nobody_publishes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert top.main(["--interval", "0.01", "--count", "3"]) == 1
    assert capsys.readouterr().out.count("no process publishes ports") == 1


def test_a_process_that_was_killed_leaves_nothing(
    other: subprocess.Popen[str], place: Path
) -> None:
    assert [path.stem for path in place.iterdir()] == [str(other.pid)]
    other.kill()
    other.wait()
    assert top.look() == {}
    assert list(place.iterdir()) == []


def test_only_its_user_may_ask_and_closing_ends_it(port: Port, place: Path) -> None:
    with pyvirtnet.publish():
        (path,) = place.iterdir()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(place.stat().st_mode) == 0o700
        assert os.getpid() in top.look()
        with pytest.raises(Error, match="cannot publish"):
            pyvirtnet.publish()
        assert os.getpid() in top.look()
    assert list(place.iterdir()) == []
    again = pyvirtnet.publish()
    again.close()
    again.close()


def test_a_process_that_is_about_to_publish_is_not_taken_for_dead(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its socket was cleared away, and it was never seen."""
    listen, seen = socket.socket.listen, []

    def look_and_listen(self: socket.socket) -> None:
        seen.append(top.look())
        listen(self)

    monkeypatch.setattr(socket.socket, "listen", look_and_listen)
    with pyvirtnet.publish():
        assert [*seen, list(top.look())] == [{}, [os.getpid()]]
    assert list(place.iterdir()) == []


def test_an_asker_that_never_reads_holds_nobody_up(port: Port, place: Path) -> None:
    with pyvirtnet.publish():
        (path,) = place.iterdir()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as mute:
            mute.connect(str(path))
            assert os.getpid() in top.look()


def test_a_forked_child_leaves_the_socket_alone(port: Port, place: Path) -> None:
    with pyvirtnet.publish() as published:
        child = os.fork()
        if child == 0:
            published.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert os.getpid() in top.look()


def test_ports_come_and_go_while_they_are_looked_at() -> None:
    stop, seen = threading.Event(), []

    def watch() -> None:
        while not stop.is_set():
            seen.append(len(snapshot()["ports"]))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        for _ in range(20):
            with pyvirtnet.open("sim:loopback") as made:
                assert made.send_burst([bytes(60)]) == 1
    finally:
        stop.set()
        thread.join()
    assert seen


def test_a_folder_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PYVIRTNET_RUN", str(tmp_path / "file/run"))
    with pytest.raises(Error, match="PYVIRTNET_RUN"):
        pyvirtnet.publish()
    assert top.look() == {}


@pytest.mark.parametrize(
    "command",
    [
        "pktgen loop sim:loopback sim:loopback --time 60 --json",
        "capture sim:loopback -w {written}",
        "replay {sent} sim:loopback --loop 0 --rate 1",
    ],
    ids=["pktgen", "capture", "replay"],
)
def test_a_command_can_be_watched(port: Port, tmp_path: Path, command: str) -> None:
    sent, written = tmp_path / "sent", tmp_path / "written"
    with sent.open("wb") as file:
        Writer(file).write(port.alloc_burst(1, 60), 0)
    written.touch()
    words = command.format(sent=sent, written=written).split()
    program = [sys.executable, "-P", "-m", "pyvirtnet.cli.main", *words]
    with subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            rows: list[dict[str, Any]] = []
            while not rows or not (rows[0]["counters"]["tx_frames"] or written.stat().st_size):
                assert process.poll() is None
                rows = [row for one in top.look().values() for row in top.figures(one, None)]
            assert rows[0]["pid"] == process.pid
            assert rows[0]["tx_pps"] is None  # at the first look
        finally:
            process.terminate()
        assert process.wait() == 143
