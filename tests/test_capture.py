"""capture on simulated cables: files, filters, bounds, rotation, its end."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import pyvirtnet
from pyvirtnet import Port
from pyvirtnet.cli import capture
from pyvirtnet.pcap import Reader

NEAR, FAR = "sim:cable/capture/0", "sim:cable/capture/1"
SIZES = [60, 128, 129, 1514, 9014]
FRAMES = [bytes([i]) * 12 + b"\x88\xb5" + bytes(SIZES[i % 5] - 14) for i in range(60)]
ARP = b"\xff" * 12 + b"\x08\x06" + bytes(46)


@pytest.fixture
def far():
    with pyvirtnet.open(FAR) as port:
        yield port


def send(port: Port, frames: list[bytes]) -> None:
    assert port.send_burst(frames) == len(frames)


def run(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    """The tool's figures, where all went well."""
    capsys.readouterr()
    assert capture.main([NEAR, *words, "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    figures: dict[str, Any] = json.loads(line)
    return figures


@pytest.mark.parametrize("name", ["file.pcap", "file.pcapng", "file"])
def test_every_frame_is_written(capsys, far, tmp_path, name):
    send(far, FRAMES)
    before = time.time_ns()
    figures = run(capsys, "-w", str(tmp_path / name), "-c", "60")
    packets = list(Reader(tmp_path / name))
    assert [packet.data for packet in packets] == FRAMES
    stamps = [packet.stamp for packet in packets]
    assert before < stamps[0] <= stamps[-1] < time.time_ns()
    assert stamps == sorted(stamps)
    assert (figures["received"], figures["written"], figures["rx_frames"]) == (60, 60, 60)
    assert figures["files"] == [str(tmp_path / name)]
    assert figures["octets"] == (tmp_path / name).stat().st_size
    assert not figures["interrupted"]
    section = (tmp_path / name).read_bytes()[:4] == bytes.fromhex("0a0d0d0a")
    assert section == name.endswith("ng")


def test_format_and_snaplen(capsys, far, tmp_path):
    send(far, FRAMES)
    words = ("--format", "pcapng", "--snaplen", "100", "--count", "10", "--burst", "7")
    run(capsys, "-w", str(tmp_path / "file"), *words)
    packets = list(Reader(tmp_path / "file"))
    assert [packet.data for packet in packets] == [frame[:100] for frame in FRAMES[:10]]
    assert [packet.length for packet in packets] == [len(frame) for frame in FRAMES[:10]]
    assert (tmp_path / "file").read_bytes()[:4] == bytes.fromhex("0a0d0d0a")


def test_a_filter_lets_frames_through(capsys, far, tmp_path):
    mixed = [frame for one in FRAMES[:20] for frame in (one, ARP)]
    send(far, mixed)
    figures = run(capsys, "arp", "or", "greater", "9000", "-w", str(tmp_path / "file"), "-c", "24")
    found = [packet.data for packet in Reader(tmp_path / "file")]
    assert found == [one for one in mixed if one == ARP or len(one) > 9000]
    assert (figures["received"], figures["written"]) == (40, 24)


def test_time_ends_it(capsys, tmp_path):
    figures = run(capsys, "-w", str(tmp_path / "file"), "--time", "0.2")
    assert figures["seconds"] >= 0.2
    assert (figures["received"], figures["written"]) == (0, 0)
    assert list(Reader(tmp_path / "file")) == []


def test_files_follow_each_other_and_the_oldest_go(capsys, far, tmp_path):
    """9014 bytes a frame: a MiB is passed with frame 117, or a burst later."""
    long = [bytes([i]) * 9014 for i in range(120)]
    sender = threading.Thread(target=lambda: [send_all(far, long) for _ in range(5)])
    sender.start()
    words = ("--rotate-size", "1", "--files", "2", "-c", "600", "--burst", "10")
    figures = run(capsys, "-w", str(tmp_path / "file.pcap"), *words)
    sender.join()
    files = sorted(tmp_path.iterdir())
    assert figures["files"] == [str(path) for path in files]
    numbers = [int(path.stem.removeprefix("file-")) for path in files]
    assert numbers[1] == numbers[0] + 1 in (5, 6)
    assert 117 <= len(list(Reader(files[0]))) <= 126
    assert (1 << 20) <= files[0].stat().st_size < (1 << 20) + 10 * 9030
    last = [packet.data for path in files for packet in Reader(path)]
    assert last == (long * 5)[600 - len(last) :]


def send_all(port: Port, frames: list[bytes]) -> None:
    left = frames
    end = time.monotonic() + 60
    while left and time.monotonic() < end:
        left = left[port.send_burst(left) :]


def test_files_follow_each_other_by_time(capsys, far, tmp_path):
    def trickle() -> None:
        for frame in FRAMES[:6]:
            send(far, [frame])
            time.sleep(0.03)  # apart, so that files are begun in between

    sender = threading.Thread(target=trickle)
    sender.start()
    run(capsys, "-w", str(tmp_path / "file.pcap"), "--rotate-time", "0.01", "-c", "6")
    sender.join()
    files = sorted(tmp_path.iterdir())
    assert len(files) > 1
    found = [packet.data for path in files for packet in Reader(path)]
    assert found == FRAMES[:6]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_with_a_whole_file(capsys, far, tmp_path, number, status):
    send(far, FRAMES)
    path = tmp_path / "file"

    def stop() -> None:
        end = time.monotonic() + 30
        while (not path.exists() or path.stat().st_size < sum(map(len, FRAMES))) and (
            time.monotonic() < end
        ):
            time.sleep(0.01)
        signal.pthread_kill(threading.main_thread().ident, number)

    stopper = threading.Thread(target=stop)
    stopper.start()
    found = capture.main([NEAR, "-w", str(path), "--json"])
    stopper.join()
    assert found == status
    figures = json.loads(capsys.readouterr().out)
    assert (figures["written"], figures["interrupted"]) == (60, True)
    assert [packet.data for packet in Reader(path)] == FRAMES


PIPED = f"""
import sys, threading, pyvirtnet
from pyvirtnet.cli import capture
with pyvirtnet.open({FAR!r}) as far:
    assert far.send_burst([bytes([i]) * 100 for i in range(20)]) == 20
    sys.exit(capture.main([{NEAR!r}, "-w", "-", *sys.argv[1:]]))
"""


def test_a_pipe_gets_the_capture_and_nothing_else(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PIPED, "-c", "20"], capture_output=True, check=True, cwd="/"
    )
    (tmp_path / "file").write_bytes(done.stdout)
    assert [packet.data[0] for packet in Reader(tmp_path / "file")] == list(range(20))
    assert done.stderr == b"20 frames received, 20 written to -\n"


def test_frames_come_out_of_a_pipe_at_once():
    with subprocess.Popen(
        [sys.executable, "-c", PIPED], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/"
    ) as process:
        assert process.stdout is not None
        got = b""
        while len(got) < 24 + 20 * 116:  # header and records; the tool is still running
            got += os.read(process.stdout.fileno(), 1 << 16)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 130
    assert got.endswith(b"\x13" * 100)


def test_it_ends_when_nobody_reads_the_pipe():
    with subprocess.Popen(
        [sys.executable, "-c", PIPED], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/"
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(60) == 141
        assert process.stderr is not None
        assert process.stderr.read() == b""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "-w"),
        (["-w", "-", "--json"], "no --json"),
        (["-w", "-", "--rotate-size", "1"], "no --json, --rotate-size"),
        (["-w", "x", "--files", "3"], "--files goes with"),
        (["-w", "x", "--snaplen", "0"], "'0' is not a number from 1"),
        (["-w", "x", "udp", "prot", "53"], "'udp prot 53' is no filter: "),
    ],
)
def test_a_wrong_option_is_one_line(capsys, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        capture.main([NEAR, *words])
    out, err = capsys.readouterr()
    assert (end.value.code, out, len(err.splitlines())) == (2, "", 1)
    assert said in err
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_is_one_error(capsys, tmp_path):
    path = Path(tmp_path / "no" / "file")
    assert capture.main([NEAR, "-w", str(path)]) == 1
    err = capsys.readouterr().err
    assert f"cannot write {path}: No such file or directory" in err
    assert "mend: " in err


@pytest.mark.parametrize("words", [(), ("--rotate-size", "1", "--files", "1")])
def test_a_file_is_not_emptied_for_a_port_that_does_not_open(capsys, tmp_path, words):
    kept = [tmp_path / "file.pcap", tmp_path / "file-00001.pcap"]
    for path in kept:
        path.write_bytes(b"precious")
    assert capture.main(["sim:nowhere", "-w", str(kept[0]), *words]) == 3
    assert "no simulator 'sim:nowhere'" in capsys.readouterr().err
    assert [path.read_bytes() for path in kept] == [b"precious"] * 2


def test_a_full_disk_is_one_error(capsys, far):
    send(far, [bytes(9014)] * 60)
    assert capture.main([NEAR, "-w", "/dev/full"]) == 1
    assert "cannot write /dev/full: No space left on device" in capsys.readouterr().err
