"""tools/pktgen loop on simulated devices: figures, bad cables, pace, bounds, the end by signal."""

import signal

import pytest
from bad_cable import Bad, Every, Plug, Tool, flip, swap

pytest_plugins = ["pktgen_fixtures"]

SIZES = [60, 128, 129, 1514, 4084, 4085, 9014, 65535]
BUFFERS = [1, 1, 1, 1, 1, 2, 3, 17]
HERE, THERE = "sim:cable/pktgen/0", "sim:cable/pktgen/1?mac=02:00:00:00:00:07"


@pytest.mark.parametrize(("tx", "rx"), [(HERE, THERE), ("sim:loopback", "sim:loopback")])
def test_every_size_arrives(tool: Tool, tx: str, rx: str) -> None:
    sizes = ",".join(map(str, SIZES))
    assert tool("loop", tx, rx, "--size", sizes, "--count", "300", "--json") == 0
    assert tool.figures["mode"] == "loop"
    assert (tool.figures["tx"], tool.figures["rx"]) == (tx, rx)
    assert tool.figures["ok"]
    for size, buffers, row in zip(SIZES, BUFFERS, tool.figures["rows"], strict=True):
        assert row["size"] == size
        assert row["sent"] == row["received"] == 300
        for none in ("lost", "corrupt", "duplicated", "reordered", "foreign"):
            assert row[none] == 0, none
        assert row["buffers_per_frame"] == buffers
        assert row["tx"]["tx_frames"] == row["rx"]["rx_frames"] == 300
        assert row["tx"]["tx_bytes"] == row["rx"]["rx_bytes"] == 300 * size
        assert row["rx"]["rx_buffers"] == 300 * buffers
        assert row["pps"] == pytest.approx(300 / row["seconds"], rel=0.01)
        assert row["gbps"] == pytest.approx(row["pps"] * size * 8 / 1e9, rel=0.01, abs=1e-6)


def test_the_table_is_on_stdout_or_beside_the_json(tool: Tool) -> None:
    words = ("loop", "sim:loopback", "sim:loopback", "--count", "50", "--size", "60,9014")
    assert tool(*words) == 0
    heading, first, second = (line.split() for line in tool.out.splitlines())
    assert heading[:5] == ["size", "sent", "received", "lost", "damaged"]
    assert heading[5:] == ["pps", "Gb/s", "buffers/frame", "p50", "us", "p99", "us", "limit"]
    assert (first[:5], first[7]) == (["60", "50", "50", "0", "0"], "1.00")
    assert (second[:5], second[7]) == (["9014", "50", "50", "0", "0"], "3.00")
    assert tool.err == ""
    assert tool(*words, "--json") == 0
    assert [line.split()[0] for line in tool.err.splitlines()] == ["size", "60", "9014"]
    assert len(tool.figures["rows"]) == 2


def test_time_ends_it(tool: Tool) -> None:
    assert tool("loop", HERE, THERE, "--time", "2", "--json") == 0
    assert 1.9 < tool.row["seconds"] < 60
    assert tool.row["sent"] > 64


@pytest.mark.parametrize("entries", [2, 4, 32, 256])
@pytest.mark.parametrize("burst", [1, 7, 1024])
def test_any_ring_and_burst(tool: Tool, entries: int, burst: int) -> None:
    name = f"sim:loopback?queue_size={entries}"
    words = ["loop", name, name, "--burst", str(burst), "--count", "400", "--json"]
    assert tool(*words, "--size", "60" if entries < 17 else "60,65535") == 0
    assert all(row["received"] == 400 for row in tool.figures["rows"])


def test_it_never_sends_more_than_the_receiver_has_room_for(tool: Tool, plug: Plug) -> None:
    device = Bad(lambda frames: frames)
    name = plug(device)
    assert tool("loop", name, name, "--size", "60,4085,65535", "--count", "600", "--json") == 0
    assert device.waiting == 0


@pytest.mark.parametrize("size", [60, 9014])
@pytest.mark.parametrize(
    "cable",
    [
        (Every(100, lambda frame: []), {"lost": 10, "received": 990}, 1),
        (Every(100, flip), {"corrupt": 10, "received": 990}, 1),
        (Every(100, lambda frame: [frame, frame]), {"duplicated": 10, "received": 1010}, 1),
        (Every(100, lambda frame: [frame[:-1]]), {"corrupt": 10, "received": 990}, 1),
        (Every(100, lambda frame: [frame, b"\xff" * 60]), {"foreign": 10, "received": 1000}, 0),
        (Every(1000, lambda frame: []), {"lost": 1, "received": 999}, 1),  # the very last one
    ],
    ids=["lossy", "noisy", "echoing", "cutting", "chatty", "last"],
)
def test_what_a_bad_cable_does_is_counted(
    tool: Tool,
    plug: Plug,
    size: int,
    cable: tuple[Every, dict[str, int], int],
) -> None:
    mangle, counts, status = cable
    mangle.seen = 0
    name = plug(Bad(mangle))
    words = ("loop", name, name, "--count", "1000", "--size", str(size), "--json")
    assert tool(*words) == status
    expected = {"sent": 1000, "lost": 0, "corrupt": 0, "duplicated": 0, "reordered": 0}
    found = {key: tool.row[key] for key in (*expected, "received", "foreign")}
    assert found == {**expected, "foreign": 0, **counts}
    assert tool.figures["ok"] == (status == 0)


def test_reordering_is_told_and_no_failure(tool: Tool, plug: Plug) -> None:
    name = plug(Bad(swap))
    assert tool("loop", name, name, "--count", "640") == 0
    assert "of these frames: 10 reordered" in tool.out


def test_a_dead_cable_is_given_up(tool: Tool, plug: Plug) -> None:
    name = plug(Bad(lambda frames: []))
    assert tool("loop", name, name, "--time", "60", "--json") == 1
    assert tool.row["received"] == 0
    assert tool.row["lost"] == tool.row["sent"] > 0
    assert "nothing more arrives; gave up after 0.2 s" in tool.err


# ---- the end by signal -------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_with_the_figures_so_far(
    tool: Tool, plug: Plug, number: int, status: int
) -> None:
    def interrupt(frame: bytes) -> list[bytes]:
        signal.raise_signal(number)
        return [frame]

    once = Every(700, interrupt)
    name = plug(Bad(lambda frames: once(frames) if once.seen < 700 else frames))
    assert tool("loop", name, name, "--time", "60", "--size", "60,128", "--json") == status
    assert tool.figures["interrupted"]
    assert not tool.figures["ok"]
    assert tool.row["size"] == 60  # the second size is not begun
    assert tool.row["sent"] == tool.row["received"] >= 700
    assert tool.row["lost"] == 0


def test_a_second_ctrl_c_ends_it_at_once(tool: Tool, plug: Plug) -> None:
    presses = iter([signal.SIGINT, signal.SIGINT])  # two, however many frames come at a time

    def interrupt(frames: list[bytes]) -> list[bytes]:
        for number in presses if frames else ():
            signal.raise_signal(number)
        return frames

    name = plug(Bad(interrupt))
    assert tool("loop", name, name, "--time", "60", "--json") == 130
    assert tool.out == ""
