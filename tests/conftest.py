"""Fixtures: ports on the device model, which have to end with every page back in its place."""

from __future__ import annotations

import gc
import itertools
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from nic import Nic, finish

from pyvirtnet import dma

SANITIZED = "PYVIRTNET_SANITIZED" in os.environ
STARTS = {"from_0": 0, "from_fff0": 0xFFF0}
# One after another: huge pages that one of them reserves are no other's to take, or to give back.
HUGE = (
    "test_bench.py",
    "test_dma.py",
    "test_soak.py",
    "test_vhost_dpdk.py",
    "test_vhost_dpdk_faults.py",
)
PAGE_KINDS = dma.PAGE_KINDS

_failed = pytest.StashKey[bool]()
_tests = itertools.count(1)


def pytest_configure(config: pytest.Config) -> None:
    for marker in (
        "rule(*names): what the test holds, see conformance.py",
        "unsanitized(why): not for the build with sanitizers",
        "xdist_group(name): run by one process",
    ):
        config.addinivalue_line("markers", marker)


@pytest.hookimpl(tryfirst=True)  # before xdist looks at its marker
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The tests of tools/fuzz come last: the losses they stage leave DMA memory behind, and a
    vhost-user memory table has no room for many regions."""
    items.sort(key=lambda item: item.path.name == "test_fuzz.py")
    for item in items:
        if item.path.name in HUGE:
            item.add_marker(pytest.mark.xdist_group("dpdk"))
    if SANITIZED:
        apart = [item for item in items if item.get_closest_marker("unsanitized")]
        config.hook.pytest_deselected(items=apart)
        items[:] = [item for item in items if not item.get_closest_marker("unsanitized")]


def pytest_collection_finish(session: pytest.Session) -> None:
    _freeze()
    if getattr(session.config.option, "loadgroup", False):
        apart = [item for item in session.items if item.path.name in HUGE]
        if not all(item.nodeid.endswith("@dpdk") for item in apart):
            raise pytest.UsageError("this pytest-xdist forms no groups: pip install 'pytest < 9.2'")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Ports of the other tests would take the huge pages that a DPDK beside them has reserved."""
    may = item.path.name in HUGE or item.path.parent.name == "vm"
    dma.PAGE_KINDS = PAGE_KINDS if may else PAGE_KINDS[-1:]


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
