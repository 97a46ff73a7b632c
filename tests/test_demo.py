"""tools/demo: its figures, what it says on the way, and how it ends when something is wrong."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
from needs import needs_guest

from pyvirtnet.cli import demo
from pyvirtnet.errors import Error

BUFFERS = [1, 1, 1, 1, 1, 2, 3, 17]
KEYS = ["size", "sent", "received", "lost", "corrupt", "pps", "gbps", "buffers_per_frame"]
BOUND = b"demo: both NICs are bound\n"


def row(size: int, **change: Any) -> dict[str, Any]:
    good = {"size": size, "sent": 9, "received": 9, "lost": 0, "corrupt": 0, "pps": 1.5}
    return {**good, "gbps": 0.5, "buffers_per_frame": 1.0, "foreign": 0, **change}


ROWS = [row(size) for size in demo.SIZES]


def figures(rows: Sequence[dict[str, Any]]) -> bytes:
    return json.dumps({"mode": "loop", "rows": rows}).encode() + b"\n"


Step = tuple[str, bytes]  # a channel's name and what comes on it


class Puppet:
    """A guest that plays a script: output step by step, then its end."""

    steps: Sequence[Step] = ()
    end: tuple[int, str] = (0, "")
    closed = 0

    def __init__(
        self,
        system: object,
        package: object,
        machine: object,
        command: Sequence[str],
        **rest: Any,
    ) -> None:
        self._sinks: dict[str, Callable[[bytes], object]] = rest
        self._left = list(self.steps)
        self.status: int | None = None
        self.failure, self.booted_after = "", None if not self.steps else 1.0
        self.command = command

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        type(self).closed += 1

    def pump(self) -> None:
        if not self._left:
            self.status, self.failure = self.end
            return
        channel, data = self._left.pop(0)
        if channel == "ctrl-c":
            raise KeyboardInterrupt
        self._sinks[channel](data)


@pytest.fixture
def guest(monkeypatch: pytest.MonkeyPatch) -> type[Puppet]:
    class Mine(Puppet):
        pass

    monkeypatch.setattr(demo, "Guest", Mine)
    monkeypatch.setattr(demo, "image", lambda: None)
    monkeypatch.setattr(demo, "payload", lambda _: None)
    return Mine


def script(rows: Sequence[dict[str, Any]]) -> list[Step]:
    return [
        ("stderr", b"0000:00:04.0: bound to vfio"),
        ("stderr", b"-pci\n" + BOUND + b"  size  sent\n"),
        ("stderr", b"    60     9\n"),
        ("stdout", figures(rows)[:40]),
        ("stdout", figures(rows)[40:]),
    ]


def test_the_table_is_on_stdout_stages_on_stderr(
    guest: type[Puppet], capsys: pytest.CaptureFixture[str]
) -> None:
    guest.steps = script(ROWS)
    assert demo.main([]) == 0
    out, err = capsys.readouterr()
    assert out == "  size  sent\n    60     9\n"
    lines = err.splitlines()
    for stage in range(1, 5):
        assert [line[:5] for line in lines].count(f"[{stage}/4]") == 2, "begin and end"
    assert "      0000:00:04.0: bound to vfio-pci" in lines
    assert lines[-1] == f"all {9 * len(ROWS)} frames arrived, none lost, none damaged"
    assert guest.closed == 1


def test_json_is_the_last_line(guest: type[Puppet], capsys: pytest.CaptureFixture[str]) -> None:
    guest.steps = script(ROWS)
    assert demo.main(["--json"]) == 0
    out, err = capsys.readouterr()
    (line,) = out.splitlines()
    found = json.loads(line)
    assert list(found) == ["rows"]
    assert [list(one) for one in found["rows"]] == [KEYS] * len(ROWS)
    assert [one["size"] for one in found["rows"]] == list(demo.SIZES)
    assert "    60     9\n" in err


@pytest.mark.parametrize(
    "rows",
    [
        ROWS[:-1],
        [],
        [*ROWS[:-1], row(65535, lost=1, received=8)],
        [*ROWS[:-1], row(65535, corrupt=1)],
        [*ROWS[:-1], row(65535, received=10)],
        [*ROWS[:-1], row(65535, sent=0, received=0)],
    ],
    ids=["a size short", "none", "lost", "damaged", "too many", "nothing sent"],
)
def test_loss_and_damage_fail(
    guest: type[Puppet], capsys: pytest.CaptureFixture[str], rows: list[dict[str, Any]]
) -> None:
    guest.steps, guest.end = script(rows), (1, "")
    assert demo.main(["--json"]) == 1
    out, err = capsys.readouterr()
    assert len(json.loads(out)["rows"]) == len(rows)
    assert "frames were lost or damaged" in err


@pytest.mark.parametrize(
    "case",
    [
        ([], (124, "time-out: kernel panic"), 2, "kernel panic"),
        ([("stderr", b"cannot bind: no IOMMU\n")], (1, ""), 3, "cannot bind: no IOMMU"),
        ([("stderr", BOUND + b"cannot open\n")], (1, ""), 4, "ended with 1"),
        ([("stderr", BOUND), ("stdout", b"nonsense\n")], (1, ""), 4, "nonsense"),
        (script(ROWS)[:-1], (124, "time-out: last lines"), 4, "last lines"),
    ],
    ids=["boot", "bind", "pktgen", "figures", "hang"],
)
def test_a_stage_that_fails_is_named_with_its_output(
    guest: type[Puppet],
    capfd: pytest.CaptureFixture[str],
    case: tuple[list[Step], tuple[int, str], int, str],
) -> None:
    guest.steps, guest.end, stage, said = case
    assert demo.main(["--json"]) == 1
    out, err = capfd.readouterr()
    assert f"stage {stage} of 4 failed" in err
    assert said in err + out
    assert '"rows"' not in out
    assert guest.closed == 1


def test_an_image_that_cannot_be_built(
    guest: type[Puppet], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise Error("no image", "no network", "apt-get update")

    monkeypatch.setattr(demo, "image", fail)
    assert demo.main([]) == 1
    assert "mend: apt-get update" in capsys.readouterr().err
    assert guest.closed == 0


def test_ctrl_c_ends_the_guest(guest: type[Puppet], capsys: pytest.CaptureFixture[str]) -> None:
    guest.steps = [*script(ROWS)[:2], ("ctrl-c", b"")]
    assert demo.main([]) == 130
    assert guest.closed == 1


@needs_guest
@pytest.mark.timeout(900)  # the first one builds the image
def test_the_real_one() -> None:
    """All eight sizes in a real guest, with less traffic than a user sees."""
    code = "import sys; from pyvirtnet.cli import demo; demo.SECONDS = 0.5; sys.exit(demo.main())"
    result = subprocess.run(
        [sys.executable, "-P", "-c", code, "--json"],
        check=False,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
    )
    assert result.returncode == 0, result.stderr
    rows = json.loads(result.stdout.splitlines()[-1])["rows"]
    assert [one["size"] for one in rows] == [60, 128, 129, 1514, 4084, 4085, 9014, 65535]
    for one, buffers in zip(rows, BUFFERS, strict=True):
        assert list(one) == KEYS
        assert one["sent"] == one["received"] > 0
        assert one["lost"] == one["corrupt"] == 0
        assert one["buffers_per_frame"] == buffers
        assert one["pps"] > 0
        assert one["gbps"] > 0
