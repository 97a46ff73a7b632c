"""VFIO devices that are wanted back, fail, or are reset by others: seen, let go of, taken anew."""

import os
import shutil

import pytest
from fake_sysfs import BDF, make_sysfs
from fake_vfio import FakeVfio
from vfio_fixtures import open_port

import pyvirtnet
from pyvirtnet import errors

ERROR, REQUEST = 3, 4  # interrupt indices of linux/vfio.h
ALIVE = 15  # the status of a device that is driven

pytest_plugins = ["vfio_fixtures"]


@pytest.fixture(autouse=True)
def _function(sysfs):
    make_sysfs(sysfs)


@pytest.fixture
def transport(fake):
    opened = open_port(fake)
    for bits in (1, 2, 8, 4):
        opened.add_status(bits)
    fake.events.clear()
    return opened


def test_a_device_that_is_well_passes(transport):
    for _ in range(3):
        transport.check()


@pytest.mark.parametrize(
    ("index", "why"), [(REQUEST, "the kernel wants it back"), (ERROR, r"PCI error \(AER\)")]
)
def test_an_alarm_is_heard_for_good(fake, transport, index, why):
    fake.alarm(index)
    for _ in range(2):
        with pytest.raises(errors.DeviceGone, match=why) as caught:
            transport.check()
    assert f"tools/bind {BDF}, then port.reset()" in caught.value.mend


def test_a_device_that_reports_no_errors_is_asked_for_all_the_same(fake):
    fake.express = False
    transport = open_port(fake)
    assert set(fake.alarms) == {REQUEST}
    fake.alarm(REQUEST)
    with pytest.raises(errors.DeviceGone):
        transport.check()


def test_it_is_let_go_of_in_order_and_says_why_from_then_on(fake, transport):
    fds = [*fake.alarms.values(), *fake.vectors]
    transport.let_go(errors.DeviceGone("lost it", "somebody pulled", "push"))
    assert fake.events == ["irqs 0", "dma off", "reset", "close", "leave group"]
    for fd in fds:
        with pytest.raises(OSError):
            os.fstat(fd)
    for call in (transport.check, transport.status, transport.reset):
        with pytest.raises(errors.DeviceGone, match="somebody pulled"):
            call()
    transport.let_go(errors.DeviceGone("lost it", "again"))
    transport.close()
    assert fake.events[-1] == "leave group"


def test_what_was_let_go_of_is_taken_anew(fake, transport):
    transport.let_go(errors.DeviceGone("lost it"))
    again = FakeVfio()
    transport._iommu.file = again
    transport.revive()
    assert again.events == ["open", "virtio reset", "dma on", "irqs 4"]
    transport.check()
    transport.add_status(1)
    assert again.state("device_status") == 1
    transport.revive()
    assert again.events[-1] == "irqs 4", "what is held is not taken again"


def test_what_is_not_back_yet_is_named(sysfs, fake, transport):
    transport.let_go(errors.DeviceGone("lost it", "it was pulled"))
    shutil.rmtree(sysfs / "bus/pci/devices" / BDF)
    with pytest.raises(errors.NoSuchDevice, match=BDF):
        transport.revive()
    with pytest.raises(errors.DeviceGone, match="pulled"):
        transport.status()


def test_another_device_in_its_slot_is_refused(sysfs, transport):
    transport.let_go(errors.DeviceGone("lost it"))
    (sysfs / "bus/pci/devices" / BDF / "device").write_text("0x1042\n")
    with pytest.raises(errors.NotVirtioNet):
        transport.revive()


def test_a_reset_by_somebody_else(fake, transport):
    fake.power(0)
    with pytest.raises(errors.DeviceGone, match="status reads 0x0: it was unplugged, or reset"):
        transport.check()


def test_a_reset_of_our_own(fake, transport):
    transport.reset()
    transport.check()
    transport.add_status(1)
    transport.check()


def test_a_device_that_asks_for_a_reset(fake, transport):
    fake.power(ALIVE | 64)
    with pytest.raises(errors.DeviceBroken, match="NEEDS_RESET"):
        transport.check()


def test_registers_of_all_ones(fake, transport):
    fake.gone = True
    with pytest.raises(errors.DeviceGone, match="all ones"):
        transport.check()


def test_calls_that_are_never_idle_look_too_and_lose_nothing(monkeypatch):
    """A device that is wanted back works on, for ever: only a look tells."""

    def wanted_back():
        raise errors.DeviceGone("lost it", "the kernel wants it back")

    monkeypatch.setattr("pyvirtnet._queue.BUSY_LOOK_SECONDS", 0.0)
    with pyvirtnet.open("sim:loopback") as port:
        tx, received = port.alloc_burst(1, 60), 0

        def exchange(frames):
            nonlocal received
            for _ in range(frames):
                assert port.send_burst(tx) == 1
                received += len(port.recv_burst(1))

        exchange(100)
        monkeypatch.setattr(port._transport, "check", wanted_back)
        with pytest.raises(errors.DeviceGone, match="wants it back"):
            exchange(1000)
        stats = port.stats
        assert received == stats.rx_frames >= 100
        assert stats.rx_frames + stats.rx_lost == stats.tx_frames
