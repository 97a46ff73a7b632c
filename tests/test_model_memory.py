"""The device model's parts by themselves: memory, what is lent, merging, what is imported."""

import ast
import random
import sys
from functools import partial
from pathlib import Path

import pytest
from hurry import side_by_side

from pyvirtnet import testing
from pyvirtnet.testing import MemoryMap
from pyvirtnet.testing.memory import Ledger
from pyvirtnet.testing.merge import fill, scatter


def test_memory_is_found_by_its_address():
    data = bytearray(range(64))
    found = MemoryMap([(0x1000, memoryview(data)), (0x2000, memoryview(bytearray(8)))])
    assert bytes(found.translate(0x1010, 4)) == bytes(data[16:20])
    found.translate(0x103F, 1)[0] = 99
    assert data[63] == 99
    for address, length in [(0xFFF, 1), (0x1000, 65), (0x1040, 1), (0x1FFF, 2), (0x2008, 1)]:
        with pytest.raises(LookupError):
            found.translate(address, length)
    found.remove(0x1000)
    with pytest.raises(LookupError):
        found.translate(0x1000, 1)
    with pytest.raises(ValueError, match="overlap"):
        found.add(0x2004, memoryview(bytearray(8)))


def test_memory_is_looked_up_again_when_it_is_not_found():
    pieces = []
    found = MemoryMap(refresh=lambda: pieces)
    with pytest.raises(LookupError):
        found.translate(0, 1)
    pieces.append((0, memoryview(bytearray(8))))
    assert found.translate(0, 8).nbytes == 8


def test_pieces_that_come_and_go_in_several_threads():
    """One's addition was another's loss, and what was removed came back."""
    memory, wrong = MemoryMap(), []

    def work(base):
        try:
            for _ in range(2000):
                memory.add(base, view)
                assert memory.translate(base, 16)
                memory.remove(base)
                with pytest.raises(LookupError):
                    memory.translate(base, 16)
        except BaseException as error:
            wrong.append(error)

    view = memoryview(bytearray(4096))
    side_by_side(*(partial(work, number << 20) for number in range(1, 5)))
    assert wrong == []


def test_what_is_lent_twice_is_given_back_twice():
    ledger = Ledger()
    ledger.lend_shared(0xFF0, 0x20, ("a", 1))
    ledger.lend_shared(0xFF0, 0x20, ("a", 1))
    ledger.give_back_shared(0xFF0, 0x20)
    assert ledger.holder(0x1000, 1) is not None
    ledger.give_back_shared(0xFF0, 0x20)
    assert ledger.holder(0x1000, 1) is None
    ledger.lend_exclusive(0x1000, 16, ("b", 1))
    assert ledger.holder(0xFF0, 16) is None
    ledger.give_back_exclusive(0x1000, 16)
    ledger.lend_exclusive(0x1008, 16, ("c", 1))


def test_merges():
    rng = random.Random(0)
    assert fill(100, [60, 60], rng) == [60, 40]
    assert fill(100, [60, 39], rng) is None
    for seed in range(200):
        spread = scatter(100, [60] * 9, random.Random(seed))
        assert sum(spread) == 100
        assert spread[0] >= 12
        assert all(0 < part <= 60 for part in spread)
    assert scatter(100, [60, 40], random.Random(1)) == [60, 40]


def test_the_model_shares_nothing_with_the_driver():
    files = sorted(Path(testing.__file__).parent.glob("*.py"))
    assert len(files) > 10
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1, f"{path.name} imports from above it"
            elif isinstance(node, ast.ImportFrom | ast.Import):
                names = [getattr(node, "module", None) or name.name for name in node.names]
                outside = {name.partition(".")[0] for name in names} - sys.stdlib_module_names
                assert not outside, f"{path.name} imports {outside}"
