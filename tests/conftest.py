"""Fixtures: ports on the device model, which have to end with every page back in its place."""

from __future__ import annotations

import gc
import itertools
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from nic import Nic, finish

# What the build with sanitizers does not run, and why.
APART = {
    "no compiled code of ours": """
        bind* command conformance doctor* hugepages layering model_[!i]* package safety_page
        source stages
    """,
    "processes and guests of their own, which have no sanitizer, or far too little time": """
        bench* demo examples soak top vhost_dpdk* vm_tool
    """,
    "measures the memory of its process, most of which is the sanitizer's": "memory",
    "tools/test --fuzz does it for longer": "fuzz",
}
APART_FILES = ["vm", *(f"test_{name}.py" for names in APART.values() for name in names.split())]
SANITIZED = "PYVIRTNET_SANITIZED" in os.environ
collect_ignore_glob = APART_FILES if SANITIZED else []
# With sanitizers all is several times slower, and where indices wrap there is more to it.
STARTS = {"from_fff0": 0xFFF0} if SANITIZED else {"from_0": 0, "from_fff0": 0xFFF0}

_failed = pytest.StashKey[bool]()
_tests = itertools.count(1)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "rule(*names): what the test holds, see conformance.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests of tools/fuzz come last: the losses they stage leave DMA memory behind, and a
    vhost-user memory table has no room for many regions."""
    items.sort(key=lambda item: item.path.name == "test_fuzz.py")


def pytest_collection_finish() -> None:
    _freeze()


def pytest_runtest_logfinish(nodeid: str) -> None:
    if next(_tests) % 64 == 0:
        _freeze()


def _freeze() -> None:
    """What was collected and reported lives to the end: `gc.collect()`, which most tests call,
    need not look at it each time."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(hookwrapper=True)  # the guest's pytest knows no wrapper=
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = (yield).get_result()  # type: ignore[misc]
    if report.when == "call":
        item.stash[_failed] = report.failed


@pytest.fixture(params=STARTS.values(), ids=STARTS)
def start_index(request: pytest.FixtureRequest) -> int:
    """Where ring indices start: at the beginning, and shortly before they wrap."""
    index: int = request.param
    return index


@pytest.fixture
def make_nic(request: pytest.FixtureRequest, start_index: int) -> Iterator[Callable[..., Nic]]:
    """Makes ports on a model of the device; options are those of `Nic` and `NetDevice`."""
    made: list[Nic] = []

    def make(device: Any = None, **options: Any) -> Nic:
        if device is None:
            options.setdefault("start_index", start_index)
        made.append(Nic(device, **options))
        return made[-1]

    yield make
    if request.node.stash.get(_failed, False):
        for nic in made:
            nic.port.close()
    else:
        finish(*made)


@pytest.fixture
def nic(make_nic: Callable[..., Nic]) -> Nic:
    """A port with rings of 256 and the model of a device behind it."""
    return make_nic()


@pytest.fixture
def port(nic: Nic) -> Any:
    return nic.port


@pytest.fixture
def device(nic: Nic) -> Any:
    return nic.device
