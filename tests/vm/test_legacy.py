"""Legacy and transitional NICs: QEMU's registers from before virtio 1.0, under no-IOMMU mode."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import pyvirtnet
from pyvirtnet import Feature, Port
from pyvirtnet.cli import bind

from . import test_noiommu
from .test_control import BROADCAST, GROUP, OTHER, OURS, arrive
from .test_noiommu import _huge_pages  # noqa: F401
from .traffic import SMALL, exchange, flood, forward, wake

MACHINE = test_noiommu.MACHINE
LEGACY = "0000:00:06.0", "0000:00:07.0"
TRANSITIONAL = "0000:00:08.0", "0000:00:09.0"

pytestmark = pytest.mark.filterwarnings("ignore::pyvirtnet.vfio.noiommu.UnsafeNoIommu")


@pytest.fixture(scope="module", autouse=True)
def _bound() -> Iterator[None]:
    assert bind.main(["bind", "--noiommu", *LEGACY, *TRANSITIONAL]) == 0
    yield
    assert bind.main(["restore", *LEGACY, *TRANSITIONAL]) == 0


@pytest.fixture(params=[LEGACY, TRANSITIONAL], ids=["legacy", "transitional"])
def ports(request: pytest.FixtureRequest) -> Iterator[tuple[Port, Port]]:
    first, second = request.param
    with (
        pyvirtnet.open(first, noiommu=True) as one,
        pyvirtnet.open(second, noiommu=True) as other,
    ):
        yield one, other


@pytest.mark.parametrize(
    ("bdf", "transport"),
    [(LEGACY[0], "VirtioLegacyTransport"), (TRANSITIONAL[0], "VfioPciTransport")],
)
def test_which_registers_are_used(bdf: str, transport: str) -> None:
    assert (Path("/sys/bus/pci/devices") / bdf / "device").read_text() == "0x1000\n"
    with pyvirtnet.open(bdf, noiommu=True) as port:
        info = port.info()
    assert info["transport"] == transport
    assert info["receive_mode"] == "mergeable"


def test_frames_of_every_size_go_both_ways(ports: tuple[Port, Port]) -> None:
    one, other = ports
    exchange(one, other)
    flood(one, other, 10_000)
    forward(one, other, other, one)


def test_a_receiver_that_waits_is_woken(ports: tuple[Port, Port]) -> None:
    wake(*ports)
    wake(*reversed(ports))


def test_configuration_is_read(ports: tuple[Port, Port]) -> None:
    one, other = ports
    assert int.from_bytes(other.mac) - int.from_bytes(one.mac) == 1
    assert str(one.mac).startswith("52:54:00:00:00:0")
    assert one.link.up


def test_reset_starts_anew(ports: tuple[Port, Port]) -> None:
    for _ in range(3):
        for port in ports:
            port.reset()
        exchange(*ports, rounds=1)


def test_a_legacy_queue_has_the_size_it_has() -> None:
    with pytest.raises(ValueError, match=r"queues of .* have 256"):
        pyvirtnet.open(LEGACY[0], noiommu=True, ring_size=128)
    pyvirtnet.open(LEGACY[0], noiommu=True, ring_size=256).close()


def test_without_mergeable_buffers_the_header_is_two_bytes_shorter() -> None:
    switches = ["-mrg_rxbuf"]
    with (
        pyvirtnet.open(LEGACY[0], noiommu=True, features=switches) as one,
        pyvirtnet.open(LEGACY[1], noiommu=True, features=switches) as other,
    ):
        assert one.info()["receive_mode"] == "small"
        exchange(one, other, sizes=SMALL)
        flood(one, other, 2_000)


def test_commands_reach_the_control_queue(ports: tuple[Port, Port]) -> None:
    kinds = (OTHER, None), (GROUP, None), (BROADCAST, None), (OURS, None)
    _, rx = ports
    before = rx.mac
    assert arrive(ports, *kinds) == [True, True, True, True]
    rx.promiscuous = False
    assert arrive(ports, *kinds) == [False, False, True, False]
    rx.mac_filter = [OTHER, GROUP]
    rx.mac = OURS
    for _ in range(2):
        assert rx.mac == OURS
        assert arrive(ports, *kinds, (before, None)) == [True, True, True, True, False]
        rx.reset()


def test_a_mac_address_is_written_where_no_command_sets_it() -> None:
    switches = ["-ctrl_mac_addr"]
    with (
        pyvirtnet.open(LEGACY[0], noiommu=True) as tx,
        pyvirtnet.open(LEGACY[1], noiommu=True, features=switches) as rx,
    ):
        assert Feature.CTRL_RX in rx.features.negotiated
        before = rx.mac
        rx.promiscuous = False
        rx.mac = OURS
        for _ in range(2):
            assert rx.mac == OURS
            assert arrive((tx, rx), (before, None)) == [False]
            rx.reset()
