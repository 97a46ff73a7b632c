"""Commands to legacy devices: where their ring lies, lengths of answers, the MAC address."""

import struct

import pytest
from commands import ALL, COMMANDS, GROUP, OTHER, OURS, Commander, arrives, commander, to
from fake_legacy import FakeLegacy
from fake_sysfs import BDF, make_sysfs
from fake_vfio import FakeIommu
from nic import frames

from pyvirtnet import FeatureMissing, Mac, Port, dma
from pyvirtnet.spec import Command, Feature
from pyvirtnet.testing import NetDevice, mask
from pyvirtnet.testing.layout import U16, USED_ELEMENT
from pyvirtnet.transport.sim import SimTransport
from pyvirtnet.transport.virtio_legacy import VirtioLegacyTransport

pytest_plugins = ["vfio_fixtures"]

# What a legacy device can have: the first 32 features
LEGACY = ALL & (1 << 32) - 1 | mask("version_1", "access_platform", "guest_csum", "guest_tso4")
ON, OFF = (Command.PROMISC, b"\1"), (Command.PROMISC, b"\0")


@pytest.fixture
def old(monkeypatch):
    """Simulated devices whose used rings begin a page, and whose MAC address is written."""

    def write(self, offset, data):
        assert offset == 0
        self.device.change(mac=data)

    monkeypatch.setattr(SimTransport, "ring_alignment", 4096)
    monkeypatch.setattr(SimTransport, "writable_mac", True)
    monkeypatch.setattr(SimTransport, "write_config", write)


@pytest.mark.rule("LEG-029", "LEG-030", "LEG-031", "LEG-032")
def test_every_command_reaches_it(old, make_nic):
    switches = ["+ctrl_vlan", "+guest_csum", "+guest_tso4"]
    device = NetDevice(features=LEGACY, queue_sizes=(256,) * 4)
    nic = make_nic(device, features=switches, queue_pairs=2)
    port, unit = nic.port, device.control
    assert unit.pairs == 2
    port.promiscuous = False
    port.mac_filter = [OTHER, GROUP]
    port.mac = OURS
    port.vlans.add(0x123)
    port.offloads = ["guest_csum"]
    for _ in range(2):
        assert (unit.filter.unicast, unit.filter.multicast) == ([OTHER], [GROUP])
        assert (unit.mac, unit.filter.vlans, unit.offloads) == (OURS, {0x123}, 1 << 1)
        assert arrives(nic, to(OTHER))
        assert not arrives(nic, to(Mac(b"\2\0\0\0\0\xff")))
        port.reset()
    assert port.send_burst(frames(20)) == 20
    assert nic.transmitted() == frames(20)


@pytest.mark.parametrize("size", [2, 64, 128, 256, 1024, 32768])
def test_the_size_is_the_devices(old, make_nic, size):
    device = NetDevice(features=LEGACY)
    device.control_size = size
    nic = make_nic(device)
    for on in [True, False] * 100:
        nic.port.promiscuous = on
    assert device.queues[2].size == size
    assert len(device.control.commands) == 200
    assert nic.port.send_burst(frames(20)) == 20
    assert nic.transmitted() == frames(20)


@pytest.mark.parametrize("size", [2, 64, 1024])
def test_laps(old, size):
    with commander(start=0xFFF0, size=size) as made:
        for lap in range(100):
            made.control.ask(*(OFF if lap % 2 else ON))
        assert len(made.device.control.commands) == 100


@pytest.mark.rule("LEG-028")
@pytest.mark.parametrize("length", [0, 2, 0xFFFFFFFF])
def test_the_length_of_an_answer_is_ignored(old, length):
    made = Commander()
    made.device.control.mute = True

    def answer():
        queue, control = made.queue, made.control._queue
        control._memory[control._answer_at] = 0
        at = 4 + 8 * (queue._given % queue.size)
        USED_ELEMENT.pack_into(queue._device_area, at, 0, length)
        U16.pack_into(queue._device_area, 2, queue._given + 1)

    made.device.on_kick = answer
    assert made.control.ask(*OFF) == b""
    made.close()


class TestAddress:
    """5.1.4: the address in the configuration is writable, where no command sets it."""

    def test_it_is_written_and_written_again_after_a_reset(self, old, make_nic):
        device = NetDevice(features=LEGACY & ~mask("ctrl_mac_addr"))
        nic = make_nic(device)
        first = nic.port.mac
        nic.port.mac = OURS
        assert (device.mac, nic.port.mac) == (OURS, OURS)
        device.change(mac=bytes(first))  # as the reset of QEMU's device does
        nic.port.reset()
        assert (device.mac, nic.port.mac) == (OURS, OURS)
        assert device.control.commands == []

    def test_without_a_control_queue(self, old, make_nic):
        nic = make_nic(NetDevice(features=LEGACY & ~mask(*COMMANDS)))
        nic.port.mac = OURS
        assert nic.port.mac == OURS
        with pytest.raises(FeatureMissing, match="CTRL_RX"):
            nic.port.promiscuous = True

    def test_a_device_without_an_address_has_none_to_write(self, old, make_nic):
        nic = make_nic(NetDevice(features=LEGACY & ~mask("mac", "ctrl_mac_addr")))
        with pytest.raises(FeatureMissing, match="CTRL_MAC_ADDR"):
            nic.port.mac = OURS

    def test_modern_devices_have_none_written(self, make_nic):
        nic = make_nic(NetDevice(features=ALL & ~mask("ctrl_mac_addr")))
        with pytest.raises(FeatureMissing, match="CTRL_MAC_ADDR"):
            nic.port.mac = OURS


def answering(legacy, size):
    """Carries out nothing, says yes to all: what was asked, by the layout of 2.7.2."""
    asked = []

    def memory(address, length):
        (region,) = (r for r in dma.memory.regions() if r.iova <= address < r.iova + r.size)
        start = address - region.iova
        return region.buffer()[start : start + length]

    def answer():
        first = legacy.pfns[2] << 12
        available = first + 16 * size
        used = available + 6 + 2 * size + 4095 & ~4095
        done = int.from_bytes(memory(used + 2, 2), "little")
        at = done % size
        head = int.from_bytes(memory(available + 4 + 2 * at, 2), "little")
        address, length, _, following = struct.unpack("<QIHH", memory(first + 16 * head, 16))
        asked.append(bytes(memory(address, length)))
        address, *_ = struct.unpack("<QIHH", memory(first + 16 * following, 16))
        memory(address, 1)[0] = 0
        memory(used + 4 + 8 * at, 8)[:] = struct.pack("<II", head, 0)
        memory(used + 2, 2)[:] = struct.pack("<H", done + 1)

    legacy.answers = answer
    return asked


@pytest.mark.parametrize("size", [16, 64, 512])
def test_through_the_registers(sysfs, size):
    make_sysfs(sysfs, device=0x1000)
    legacy = FakeLegacy()
    legacy.features |= mask("ctrl_vq", "ctrl_rx")
    legacy.queue_sizes = [256, 256, size]
    iommu = FakeIommu(legacy)
    iommu.physical = True
    asked = answering(legacy, size)
    with Port(VirtioLegacyTransport(BDF, iommu)) as port:
        assert Feature.CTRL_VQ in port.features.negotiated
        port.promiscuous = False
        port.mac_filter = [OTHER]
        port.mac = OURS
        assert legacy.net_config[:6] == OURS
        assert legacy.notifications.count(2) == 2
        port.reset()
        assert legacy.net_config[:6] == OURS
    assert asked == [b"\0\0\0", b"\1\0\1\0\0\0" + OTHER + bytes(4)] * 2
    assert legacy.violations == []
