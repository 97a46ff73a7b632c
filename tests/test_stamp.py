"""Test frames: every damage is seen, every frame is counted once, and only rows are written."""

import pickle
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pyvirtnet
from pyvirtnet import Port, TxBurst
from pyvirtnet._stamp import ETHERTYPE, MIN_STAMPED, STREAM, Checker, in_flight, stamp

SIZES = [MIN_STAMPED, 33, 39, 40, 60, 127, 128, 129, 1514, 4084, 4085, 9014, 65535]
HEADER = bytes(range(2, 14)) + ETHERTYPE.to_bytes(2, "big")
WINDOW = 1 << 20


@pytest.fixture(params=["fill", "random"])
def port(request: pytest.FixtureRequest) -> Iterator[Port]:
    """A loopback that merges full pages, and one that splits frames anywhere."""
    with pyvirtnet.open(f"sim:loopback?queue_size=1024&merge={request.param}") as port:
        yield port


@pytest.fixture(scope="module")
def memory() -> Iterator[Port]:
    """A port for bursts that are never sent."""
    with pyvirtnet.open("sim:loopback") as port:
        yield port


def frames(port: Port, count: int, size: int, first: int = 0) -> TxBurst:
    burst = port.alloc_burst(count, size)
    burst.data[:, :14] = np.frombuffer(HEADER, np.uint8)
    stamp(burst, first)
    return burst


def counts(checker: Checker) -> dict[str, int]:
    names = ("received", "corrupt", "foreign", "duplicated", "reordered")
    return {name: value for name in names if (value := getattr(checker, name))}


def came_back(port: Port, content: list[bytes], first: int | None = None) -> Checker:
    """What a checker says of frames that went through the port."""
    checker, left = Checker(first), len(content)
    assert port.send_burst(content) == left
    while left:
        burst = port.recv_burst(64)
        assert len(burst), f"{left} of {len(content)} frames have not come back"
        checker.check(burst)
        left -= len(burst)
    return checker


@pytest.mark.parametrize("size", SIZES)
def test_intact_frames_pass(port: Port, size: int) -> None:
    for start in (0, 1 << 40):
        checker = Checker(start)
        for first in range(start, start + 60, 3):
            assert port.send_burst(frames(port, 3, size, first)) == 3
            assert checker.check(port.recv_burst(64)) == 3
        assert counts(checker) == {"received": 60}
        assert checker.bytes == 60 * size
        assert checker.lost(60) == checker.lost() == 0


@pytest.mark.parametrize("size", [MIN_STAMPED, 60, 61, 67, 128, 129, 200])
def test_every_flipped_bit_is_seen(memory: Port, size: int) -> None:
    burst = frames(memory, 1, size)
    row = burst.data[0]
    for position in range(size):
        for bit in range(8):
            row[position] ^= 1 << bit
            checker = Checker(0)
            assert checker.check(burst) == 0, f"bit {bit} of byte {position}"
            assert counts(checker) == {"corrupt": 1}
            row[position] ^= 1 << bit
    assert Checker(0).check(burst) == 1


@pytest.mark.parametrize("size", [129, 4085, 9014, 65535])
def test_flips_in_fragments_are_seen(port: Port, size: int) -> None:
    good = frames(port, 1, size)[0].tobytes()
    edges = {0, 13, 14, 127, 128, 4083, 4084, 8179, 8180, size - 1, size - 2}
    sample = edges | set(np.random.default_rng(size).integers(0, size, 40).tolist())
    for position in sorted(position for position in sample if position < size):
        bad = bytearray(good)
        bad[position] ^= 0x10
        assert counts(came_back(port, [bytes(bad)])) == {"corrupt": 1}, f"byte {position}"
    assert counts(came_back(port, [good])) == {"received": 1}


def test_misplaced_content_is_seen(port: Port) -> None:
    good, other = (row.tobytes() for row in frames(port, 2, 65535))
    one, two, three = slice(4084, 8180), slice(8180, 12276), slice(12276, 16372)
    pieces = {
        "two pages swapped": good[:4084] + good[two] + good[one] + good[12276:],
        "three pages rotated": good[:4084] + good[three] + good[one] + good[two] + good[16372:],
        "a page of another frame": good[:4084] + other[one] + good[8180:],
        "a page twice": good[:8180] + good[one] + good[12276:],
        "a page of zeros": good[:4084] + bytes(4096) + good[8180:],
        "two words swapped": good[:40] + good[48:56] + good[40:48] + good[56:],
        "another frame's sequence": good[:16] + other[16:24] + good[24:],
        "another frame's rest": good[:128] + other[128:],
        "cut by a byte": good[:-1],
        "cut by a page": good[:-4096],
        "cut to the head": good[:128],
        "cut inside the stamp": good[:31],
        "cut behind the type": good[:15],
    }
    for what, content in pieces.items():
        assert counts(came_back(port, [content])) == {"corrupt": 1}, what


def test_padding_is_seen(port: Port) -> None:
    good = frames(port, 1, 56)[0].tobytes()
    assert counts(came_back(port, [good + bytes(4)])) == {"corrupt": 1}


def test_neighbours_chatter_is_foreign(port: Port) -> None:
    addresses = HEADER[:12]
    chatter = [
        addresses + bytes.fromhex("86dd6000000000103aff") + bytes(60),  # IPv6
        addresses + bytes.fromhex("08060001080006040001") + bytes(18),  # ARP
        addresses + bytes.fromhex("0800"),  # no payload at all
        addresses + bytes(2000),
    ]
    good = frames(port, 1, 60)[0].tobytes()
    assert counts(came_back(port, [*chatter, good])) == {"received": 1, "foreign": 4}


def test_only_rows_are_written(memory: Port) -> None:
    burst = memory.alloc_burst(4, 200)
    burst.data[:] = 0xA5
    burst.set_lengths([100, 32, 137, 200])
    stamp(burst[1:3], 7)
    data = burst.data
    for row, length in ((0, 0), (1, 32), (2, 137), (3, 0)):
        assert (data[row, length:] == 0xA5).all(), f"row {row} behind byte {length}"
        assert (data[row, :14] == 0xA5).all()
    assert (data[1:3, 14:32] != 0xA5).any(axis=1).all()
    assert Checker(7).check(burst[1:3]) == 2
    picked = burst[[3, 0]]
    stamp(picked, 20)
    checker = Checker(20)
    assert checker.check(picked) == 2
    assert checker.reordered == 0


def test_a_short_row_refuses_all(memory: Port) -> None:
    burst = memory.alloc_burst(3, 64)
    burst.set_lengths([64, MIN_STAMPED - 1, 64])
    with pytest.raises(ValueError, match="frame 1 has 31 bytes"):
        stamp(burst, 0)
    assert not burst.data.any()


def test_wrong_arguments_raise(memory: Port) -> None:
    burst = memory.alloc_burst(1, 64)
    for wrong in (None, b"", [b"x" * 60], burst.data, memory.recv_burst(1)):
        with pytest.raises(TypeError):
            stamp(wrong, 0)  # type: ignore[arg-type]
    for number in (-1, 1 << 64):
        with pytest.raises(OverflowError):
            stamp(burst, number)
        with pytest.raises(OverflowError):
            Checker(number)
    for thing in (None, b"", burst.data):
        with pytest.raises(TypeError):
            Checker(0).check(thing)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            in_flight(thing)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        pickle.dumps(Checker(0))
    assert Checker(0).check(memory.recv_burst(1)) == 0
    assert in_flight(burst[:0]) == 0
    stamp(burst[:0], 0)
    assert not burst.data.any()


def test_in_flight_counts_sends_until_reclaimed() -> None:
    with pyvirtnet.open("sim:loopback") as port:
        burst = frames(port, 8, 60)
        part = burst[2:5]
        assert in_flight(burst) == 0
        assert port.send_burst(part) == 3
        assert in_flight(burst) == in_flight(part) == 3
        assert port.reclaim() == 3
        assert in_flight(burst) == 0


class Model:
    """What a checker must count, told from the whole history."""

    def __init__(self, numbers: list[int]) -> None:
        seen: set[int] = set()
        self.duplicated = self.reordered = 0
        for number in numbers:
            if number in seen:
                self.duplicated += 1
            elif seen and number < max(seen):
                self.reordered += 1
            seen.add(number)
        self.lost = max(seen) + 1 - len(seen)


@given(st.lists(st.integers(0, 300), min_size=1, max_size=200), st.sampled_from([0, 5 * STREAM]))
@settings(deadline=None, max_examples=100)
def test_counts_agree_with_a_model(numbers: list[int], base: int) -> None:
    with pyvirtnet.open("sim:loopback") as port:
        burst = port.alloc_burst(len(numbers), MIN_STAMPED)
        for i, number in enumerate(numbers):
            stamp(burst[i : i + 1], base + number)
        checker, model = Checker(base), Model(numbers)
        assert checker.check(burst) == len(numbers)
    assert checker.duplicated == model.duplicated
    assert checker.reordered == model.reordered
    assert checker.lost() == model.lost
    assert checker.lost(301) == 301 - len(set(numbers))
    assert checker.foreign == checker.corrupt == 0
    assert checker.passed == max(numbers) + 1


def test_counts_stay_exact_over_several_windows(memory: Port) -> None:
    """Of three million: every 1000th lost, every 777th late, every 555th twice."""
    size, total = 4096, 3 * WINDOW // 4096 * 4096
    burst, checker = memory.alloc_burst(size, MIN_STAMPED), Checker(0)
    numbers = np.arange(size)
    lost = late = twice = 0
    for first in range(0, total, size):
        stamp(burst, first)
        number = first + numbers
        gone, slow = number % 1000 == 0, number % 777 == 0
        again = (number % 555 == 0) & ~gone
        slow &= ~gone
        slow[-1] = False  # behind the last one nothing is late
        checker.check(burst[~gone & ~slow])
        checker.check(burst[slow])
        checker.check(burst[again])
        lost, late, twice = lost + gone.sum(), late + slow.sum(), twice + again.sum()
    assert checker.lost(total) == lost
    assert checker.reordered == late
    assert checker.duplicated == twice
    assert checker.received == total - lost + twice


def test_gaps_wider_than_the_window(memory: Port) -> None:
    burst = memory.alloc_burst(1, MIN_STAMPED)
    checker = Checker(0)
    far = 5 * WINDOW
    for number in (0, far, far - WINDOW + 1, far - WINDOW + 1, far - WINDOW, far + 1):
        stamp(burst, number)
        assert checker.check(burst) == 1
    assert checker.reordered == 1  # the oldest of the window
    assert checker.duplicated == 2  # that one again, and one too old to be told apart
    assert checker.lost() == far + 2 - 4


def test_other_streams_are_foreign(memory: Port) -> None:
    burst, checker = memory.alloc_burst(1, MIN_STAMPED), Checker(STREAM + 10)
    for number in (0, STREAM + 9, 2 * STREAM + 10, STREAM + 10):
        stamp(burst, number)
        checker.check(burst)
    assert counts(checker) == {"received": 1, "foreign": 3}
    assert checker.astray == 3
    burst.data[:, 12:16] = 0
    assert checker.check(burst) == 0
    assert (checker.foreign, checker.astray) == (4, 3)


def test_a_checker_adopts_the_stream_it_meets(memory: Port) -> None:
    burst, checker = memory.alloc_burst(1, MIN_STAMPED), Checker()
    for number in (70, 72, 69, STREAM + 71, 71, 74):
        stamp(burst, 3 * STREAM + number)
        checker.check(burst)
    assert counts(checker) == {"received": 5, "foreign": 1, "reordered": 2}
    assert checker.lost() == 1
    assert checker.passed == 6


def test_damage_and_loss_are_told_apart(memory: Port) -> None:
    burst, checker = frames(memory, 10, 60), Checker(0)
    burst.data[4, 50] ^= 1
    checker.check(burst[[0, 1, 2, 4, 5, 8]])
    assert counts(checker) == {"received": 5, "corrupt": 1}
    assert checker.lost() == 3
    assert checker.lost(10) == 4
