"""pyvirtnet rfc2544: its searches find what a device can carry; the tool and its report."""

import json
import signal
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from pyvirtnet import DeviceGone
from pyvirtnet.cli import rfc2544
from pyvirtnet.cli._pktgen_options import Mix
from pyvirtnet.cli._pktgen_report import Row
from pyvirtnet.cli._pktgen_traffic import Run
from pyvirtnet.cli._rfc2544_report import page
from pyvirtnet.cli._rfc2544_search import (
    Interrupted,
    back_to_back,
    loss,
    loss_curve,
    throughput,
)


def carries(most: float, sender: float = 1e9) -> Callable[[float], Row]:
    """A device that carries so many frames a second, and a sender that sends no faster."""

    def trial(pps: float) -> Row:
        pps = min(pps, sender)
        sent = round(pps * 10)
        return Row(sent=sent, lost=max(0, sent - round(most * 10)), corrupt=0, sent_pps=pps)

    return trial


@pytest.mark.parametrize("most", [1.0, 333.0, 777_777.0, 999_999.0])
def test_throughput_is_found_within_its_precision(most: float) -> None:
    found = throughput(carries(most), 1e6, 0.0, 0.001)
    assert most - 1000 <= found.pps <= most + 0.1
    assert found.by == "device"
    assert len(found.trials) <= 11


def test_a_device_that_carries_all_needs_one_trial() -> None:
    found = throughput(carries(2e6), 1e6, 0.0, 0.01)
    assert (found.pps, found.by, len(found.trials)) == (1e6, "rate", 1)


def test_a_device_that_carries_nothing() -> None:
    assert throughput(carries(0.0), 1e6, 0.0, 0.01).pps == 0


def test_a_sender_that_is_too_slow_is_told_apart() -> None:
    found = throughput(carries(2e6, sender=3e5), 1e6, 0.0, 0.01)
    assert (found.pps, found.by, len(found.trials)) == (3e5, "sender", 1)


@pytest.mark.parametrize("share", [0.97, 0.98, 0.995])
def test_a_sender_a_little_below_each_rate_does_not_keep_the_search_from_its_end(
    share: float,
) -> None:
    """What was sent may be less than a rate that passed before: no trial is made twice."""
    asked: list[float] = []

    def trial(pps: float) -> Row:
        assert pps not in asked
        asked.append(pps)
        return carries(share * 970_000)(share * pps)

    found = throughput(trial, 1e6, 0.0, 0.001)
    assert len(found.trials) <= 11
    assert share * 969_000 <= found.pps <= share * 970_000
    assert found.by == "device"


def test_loss_may_be_tolerated() -> None:
    found = throughput(carries(1e5), 1e6, 0.5, 0.001)
    assert found.pps == pytest.approx(2e5, rel=0.02)


def test_damaged_frames_are_lost_ones_and_no_frame_is_all() -> None:
    assert loss(Row(sent=10, lost=1, corrupt=1)) == 0.2
    assert loss(Row(sent=0)) == 1.0


@pytest.mark.parametrize(("most", "trials"), [(1e6, 2), (650_000.0, 6), (0.0, 10)])
def test_the_loss_curve_ends_after_two_trials_without_loss(most: float, trials: int) -> None:
    rows = loss_curve(carries(most), 1e6)
    assert len(rows) == trials
    assert [row.sent_pps for row in rows[:2]] == [1e6, 9e5]


@pytest.mark.parametrize("room", [0, 1, 2, 300, 4999, 5000, 10**6])
def test_the_longest_burst_is_found(room: int) -> None:
    def burst(frames: int) -> Row:
        return Row(sent=frames, lost=max(0, frames - room), corrupt=0)

    found = back_to_back(burst, 5000, 2)
    assert found.frames <= room
    assert found.frames >= min(room, 5000) * 0.98 - 1
    assert found.by == ("time" if room >= 5000 else "device")
    assert len(found.trials) <= 2 * 14


@pytest.mark.parametrize(
    ("trials", "frames"), [(0, 0), (1, 0), (2, 0), (3, 0), (5, 0), (6, 2500), (8, 2500)]
)
def test_an_interrupted_search_of_bursts_says_so(trials: int, frames: int) -> None:
    """5000 frames fail in the third burst of three; 2500 pass, 3750 are not decided."""

    def burst(frames: int) -> Row:
        if len(sent) == trials:
            raise Interrupted
        sent.append(frames)
        return Row(sent=frames, lost=int(len(sent) == 3), corrupt=0)

    sent: list[int] = []
    found = back_to_back(burst, 5000, 3)
    assert (found.frames, found.by, len(found.trials)) == (frames, "interrupted", trials)


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any], str]:
    capsys.readouterr()
    status = rfc2544.main([*words, "--json"])
    out, err = capsys.readouterr()
    found: dict[str, Any] = json.loads(out)
    return status, found, err


def test_all_tests_on_a_cable(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    ends = ("sim:cable/rfc/0", "sim:cable/rfc/1")
    words = ("--size", "60,imix", "--time", "0.1", "--rate", "1k", "--report", str(tmp_path))
    status, found, err = run(capsys, *ends, *words)
    assert status == 0
    assert [one["mix"] for one in found["sizes"]] == ["60", "imix"]
    assert "| imix |" in (tmp_path / "report.md").read_text()  # not its mean, as if it were a size
    for one in found["sizes"]:
        assert one["top_pps"] == 1000
        assert 0 < one["throughput"]["pps"] <= 1000
        assert [load["load"] for load in one["latency"]] == [50, 100]
        assert one["latency"][1]["latency_us"]["p50"] > 0
        assert len(one["loss"]) >= 2
        assert 0 < one["back_to_back"]["frames"] <= one["back_to_back"]["most"] == 100
    text = (tmp_path / "report.md").read_text()
    assert text.startswith(page(found))
    plots = {path.name for path in tmp_path.glob("*.png")}
    assert plots == {"throughput.png", "latency.png", "loss.png"}
    assert all(f"({name})" in text for name in plots)
    assert err.count("wrote ") == 1 + len(plots)


@pytest.mark.parametrize("trials", [1, 2, 3])
def test_a_burst_that_nothing_is_known_of_is_left_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, trials: int
) -> None:
    """Ctrl-C comes in the next trial. 50 frames are too many, half of them pass."""
    done = count()

    def loop(tx: object, rx: object, mix: object, stream: object, run: Run) -> Row:
        if next(done) == trials:
            run.stop.signal = signal.SIGINT
        frames = run.bounds.count or 0
        return Row(sent=frames, lost=int(frames == 50), corrupt=0)

    monkeypatch.setattr(rfc2544, "loop", loop)
    words = ("--size", "60", "--time", "1", "--rate", "50", "--tests", "back-to-back")
    status, found, err = run(capsys, "sim:loopback", "sim:loopback", *words, "--repeat", "2")
    assert status == 130
    burst = found["sizes"][0].get("back_to_back")
    if trials < 3:
        assert burst is None
        assert "burst of" not in err
    else:
        assert burst == {"frames": 25, "most": 50, "limit": "interrupted", "trials": 3}
        assert "burst of 25 or more\n" in err
        assert "| 60 | 25 or more |" in page(found)


@pytest.mark.parametrize("trials", [0, 1, 5, 6, 8, 12, 13, 14, 20, 25])
def test_ctrl_c_leaves_what_was_found_and_nothing_made_up(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    trials: int,
) -> None:
    """It comes in the trial after so many. The device carries three quarters of the top."""
    done = count()

    def loop(tx: object, rx: object, mix: object, stream: object, run: Run) -> Row:
        if next(done) == trials:
            run.stop.signal = signal.SIGINT
            return Row(sent=0, sent_pps=0.0)
        if run.bounds.count is not None:
            return Row(sent=run.bounds.count, lost=0, corrupt=0)
        pps = run.pace.pps or 0.0
        row = carries(750)(pps)
        row.asked_pps = pps
        return row

    monkeypatch.setattr(rfc2544, "loop", loop)
    words = ("sim:loopback", "sim:loopback", "--size", "60,128", "--rate", "1k", "--repeat", "1")
    status, found, _ = run(capsys, *words, "--precision", "10", "--report", str(tmp_path))
    assert (status, found["interrupted"]) == (130, True)
    first = found["sizes"][0]
    rates = [one["throughput"] for one in found["sizes"] if "throughput" in one]
    losses = [at for rate in rates for at in rate["trials"]]
    losses += [at for one in found["sizes"] for at in one.get("loss", [])]
    assert all(at["loss_percent"] <= 25 and at["sent"] for at in losses)
    assert all(rate["limit"] in ("device", "interrupted") for rate in rates)
    begins = {"throughput": 0, "latency": 5, "loss": 7, "back_to_back": 12}
    assert {name for name in begins if name in first} == {
        name for name, trial in begins.items() if trials > trial
    }
    assert (tmp_path / "report.md").read_text().startswith(page(found))
    assert ("ended early: interrupted" in page(found)) == bool(found["interrupted"])


def test_one_test_alone(capsys: pytest.CaptureFixture[str]) -> None:
    port = "sim:loopback"
    words = ("--size", "60", "--time", "0.05", "--rate", "500", "--tests", "back-to-back")
    _, found, _ = run(capsys, port, port, *words)
    assert set(found["sizes"][0]) == {"size", "mix", "top_pps", "back_to_back"}


def test_default_sizes_have_room_for_the_headers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rfc2544.Bench, "size", lambda *_: iter(()))
    for frame, least in (("ipv4/udp", 60), ("ipv6/tcp", 92)):
        _, found, _ = run(capsys, "sim:loopback", "sim:loopback", "--frame", frame)
        assert [one["size"] for one in found["sizes"]] == [least, 124, 252, 508, 1020, 1276, 1514]


def test_without_a_rate_the_program_is_the_limit(capsys: pytest.CaptureFixture[str]) -> None:
    port = "sim:loopback?speed_duplex=off"
    words = ("--size", "60", "--time", "0.05", "--tests", "throughput", "--loss", "99")
    status, found, _ = run(capsys, port, port, *words)
    assert status == 0
    assert found["sizes"][0]["throughput"]["limit"] == "sender"


QUICK = ("--size", "60", "--time", "0.05", "--rate", "500")
LOSS = ("sim:loopback", "sim:loopback", *QUICK, "--tests", "loss")


def test_a_report_that_cannot_be_written_is_known_before_anything_is_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.delattr(rfc2544.pyvirtnet, "open")
    assert rfc2544.main([*LOSS, "--report", str(tmp_path / "file" / "results")]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert f"cannot write to {tmp_path}/file/results: Not a directory\n  mend: ls -ld " in err


def test_figures_are_not_lost_with_a_report_that_cannot_be_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "report.md").mkdir()
    assert rfc2544.main([*LOSS, "--report", str(tmp_path), "--json"]) == 1
    out, err = capsys.readouterr()
    assert [one["size"] for one in json.loads(out)["sizes"]] == [60]
    assert f"cannot write to {tmp_path}: Is a directory" in err


def test_a_device_that_carries_nothing_fails(capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody is at the cable's other end."""
    words = ("--size", "60", "--time", "0.05", "--rate", "100", "--tests", "throughput")
    status, found, _ = run(capsys, "sim:cable/a/0", "sim:cable/b/1", *words, "--precision", "60")
    assert status == 1
    assert found["sizes"][0]["throughput"]["pps"] == 0


@pytest.mark.parametrize("test", ["loss", "back-to-back"])
@pytest.mark.parametrize(("lost", "status"), [(1.0, 1), (0.9, 0)])
def test_each_test_knows_a_device_that_carries_nothing(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    test: str,
    lost: float,
    status: int,
) -> None:
    def loop(tx: object, rx: object, mix: object, stream: object, run: Run) -> Row:
        sent = run.bounds.count or 10
        return Row(sent=sent, lost=int(lost * sent), corrupt=0)

    monkeypatch.setattr(rfc2544, "loop", loop)
    words = ("--size", "60", "--time", "0.5", "--rate", "100", "--tests", test)
    assert run(capsys, "sim:loopback", "sim:loopback", *words)[0] == status


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--size", "1514,60", "--frame", "ipv6/tcp"), "cannot send 60 bytes: headers and number"),
        (("--size", "60,9014"), "cannot send 9014 bytes: it sends up to 1514"),
        (("--size", "60*1+1514*2", "--frame", "ipv6/tcp"), "cannot send 60 bytes"),
        (("--rate", "10%"), "cannot send at 10%: the port does not say"),
    ],
)
def test_what_cannot_be_sent_is_known_before_anything_is_measured(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    said: str,
) -> None:
    monkeypatch.delattr(rfc2544, "loop")
    port = "sim:loopback?mtu=1500&speed_duplex=off"
    assert rfc2544.main([port, port, "--tests", "loss", *words]) in (1, 2)
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err


GONE = ("sim:loopback is gone", "unplugged", "plug it in")


def test_what_was_found_before_an_error_is_reported(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The device is gone in the second size's second test, its burst."""

    def loop(tx: object, rx: object, mix: Mix, stream: object, run: Run) -> Row:
        if mix.label == "128" and run.bounds.count:
            raise DeviceGone(*GONE)
        return Row(sent=100, lost=1, corrupt=0, asked_pps=run.pace.pps)

    monkeypatch.setattr(rfc2544, "loop", loop)
    words = ("--size", "60,128,252", "--rate", "1k", "--tests", "loss,back-to-back")
    ports = ("sim:loopback", "sim:loopback")
    status, found, err = run(capsys, *ports, *words, "--report", str(tmp_path))
    assert status == 1
    assert [one["mix"] for one in found["sizes"]] == ["60", "128"]
    first, second = found["sizes"]
    assert (len(first["loss"]), first["back_to_back"]["frames"]) == (10, 0)
    assert len(second["loss"]) == 10
    assert "back_to_back" not in second
    assert found["error"].startswith("sim:loopback is gone: unplugged")
    assert "   128  1.00 % lost at the top\n" in err
    assert (tmp_path / "report.md").read_text().startswith(page(found))
    assert "ended early: sim:loopback is gone" in page(found)
    (tmp_path / "report.md").unlink()
    (tmp_path / "report.md").mkdir()
    _, _, err = run(capsys, *ports, *words, "--report", str(tmp_path))
    assert "cannot write" in err
    assert "sim:loopback is gone: unplugged" in err


def test_an_error_before_any_figure_leaves_an_earlier_report_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def loop(*_: object) -> Row:
        raise DeviceGone(*GONE)

    monkeypatch.setattr(rfc2544, "loop", loop)
    (tmp_path / "report.md").write_text("precious")
    words = ["--size", "60", "--rate", "1k", "--report", str(tmp_path), "--json"]
    assert rfc2544.main(["sim:loopback", "sim:loopback", *words]) == 1
    out, err = capsys.readouterr()
    assert (out, err) == ("", "pyvirtnet rfc2544: " + str(DeviceGone(*GONE)) + "\n")
    assert (tmp_path / "report.md").read_text() == "precious"


@pytest.mark.parametrize(
    "words",
    [
        ("--tests", "speed"),
        ("--loss", "100"),
        ("--precision", "0"),
        ("--size", "x"),
        ("--rate", "x"),
    ],
)
def test_wrong_usage_is_one_line(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    with pytest.raises(SystemExit) as end:
        rfc2544.main(["sim:loopback", "sim:loopback", *words])
    assert end.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
