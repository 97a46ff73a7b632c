"""Commands whose device goes: what came before is told, and written, and the error is the last."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pyvirtnet
from pyvirtnet import DeviceGone, RxBurst
from pyvirtnet.cli import capture, fwd, pktgen
from pyvirtnet.pcap import Reader

FRAMES = [bytes([number]) * 60 for number in range(5)]
GONE = "sim:loopback is gone: it was unplugged"

Opened = Callable[..., pyvirtnet.Port]


@pytest.fixture
def short_lived(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that has received five frames, in the middle of which somebody looks, and goes."""
    whole = pyvirtnet.open

    def made(address: str, **settings: Any) -> pyvirtnet.Port:
        port = whole(address, **settings)
        assert port.send_burst(FRAMES) == 5
        receive = port.recv_burst
        calls = iter([1, 4])

        def recv_burst(n: int, *, timeout: float | None = 0.0) -> RxBurst:
            if (some := next(calls, 0)) == 0:
                raise DeviceGone("sim:loopback is gone", "it was unplugged", "plug it in")
            return receive(some, timeout=timeout)

        vars(port)["recv_burst"] = recv_burst
        return port

    monkeypatch.setattr(pyvirtnet, "open", made)


@pytest.mark.usefixtures("short_lived")
@pytest.mark.parametrize("command", ["capture", "fwd", "pktgen"])
def test_what_came_before_is_told(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing was, and what was captured could be lost with it."""
    file = tmp_path / "some.pcap"
    words = {
        "capture": (capture.main, ["sim:loopback", "-w", str(file), "--json"]),
        "fwd": (fwd.main, ["sim:loopback", "--mode", "drop", "--json"]),
        "pktgen": (pktgen.main, ["rx", "sim:loopback", "--time", "60", "--json"]),
    }
    main, argv = words[command]
    assert main(argv) == 1
    said = capsys.readouterr()
    figures = json.loads(said.out.splitlines()[-1])
    assert figures["error"] == GONE
    assert said.err.endswith(f"pyvirtnet {command}: {GONE}\n  mend: plug it in\n")
    if command == "capture":
        assert (figures["received"], figures["written"]) == (5, 5)
        assert [packet.data for packet in Reader(file)] == FRAMES
    elif command == "fwd":
        assert figures["frames"] == 5
    else:
        assert not figures["ok"]
        assert figures["rows"][0]["rx"]["rx_frames"] == 5


@pytest.mark.usefixtures("short_lived")
@pytest.mark.parametrize("form", ["pcap", "pcapng"])
def test_a_next_file_that_cannot_be_made(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first file was closed already, and its end a traceback."""
    monkeypatch.setattr(capture.Files, "_is_due", lambda self: (folder.rename(moved), True)[1])
    folder, moved = tmp_path / "here", tmp_path / "there"
    folder.mkdir()
    words = ["sim:loopback", "-w", str(folder / f"x.{form}"), "--rotate-size", "1", "--json"]
    assert capture.main(words) == 1
    said = capsys.readouterr()
    assert json.loads(said.out.splitlines()[-1])["error"].startswith("cannot write ")
    assert "mend: " in said.err


def test_what_was_captured_can_be_read_while_frames_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file stayed empty as long as the port was busy."""
    monkeypatch.setattr(capture, "FLUSH", 0.0)
    file, sizes = tmp_path / "some.pcap", []
    whole = pyvirtnet.open

    def busy(address: str) -> pyvirtnet.Port:
        port = whole(address)
        receive = port.recv_burst

        def recv_burst(n: int, *, timeout: float | None = 0.0) -> RxBurst:
            sizes.append(file.stat().st_size)
            port.send_burst(FRAMES)
            return receive(n, timeout=1.0)

        vars(port)["recv_burst"] = recv_burst
        return port

    monkeypatch.setattr(pyvirtnet, "open", busy)
    assert capture.main(["sim:loopback", "-w", str(file), "--count", "15"]) == 0
    assert sizes[1:] == [24, 24 + 5 * 76]
