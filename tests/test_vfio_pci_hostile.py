"""Hostile and odd virtio-pci devices: what the capability walk takes, and how each lie ends."""

import os

import fake_vfio
import pytest
from fake_pci_config import capability, standard_capabilities
from fake_sysfs import BDF, make_sysfs
from fake_vfio import FakeVfio
from vfio_fixtures import open_port

from pyvirtnet import errors
from pyvirtnet.transport import pci_function
from pyvirtnet.transport.base import QueueAddresses

ADDRESSES = QueueAddresses(256, 0x1_2345_6000, 0x1_2345_7000, 0x1_2345_8000)

pytest_plugins = ["vfio_fixtures"]


@pytest.fixture(autouse=True)
def _function(sysfs):
    make_sysfs(sysfs)


class TestCapabilities:
    @pytest.mark.rule("PCI-010", "PCI-011", "PCI-013")
    def test_the_first_usable_capability_of_a_type_wins(self):
        bodies = standard_capabilities()
        bodies += [capability(1, 0x2000, 0x1000)]
        bodies = [
            capability(1, 0, 0x1000, bar=6),
            capability(1, 0, 0x1000, bar=0),
            capability(1, 0, 0x20),
            capability(9, 0, 0),
            capability(77, 0, 0),
            *bodies,
        ]
        assert open_port(FakeVfio(bodies)).status() == 0

    def test_the_low_bits_of_pointers_are_reserved(self, fake):
        fake.config[0x34] |= 3
        fake.config[0x41] |= 1
        assert open_port(fake).status() == 0

    @pytest.mark.rule("PCI-012")
    def test_a_longer_capability_is_accepted(self):
        bodies = [
            body if body[1] != 1 else b"\x30" + body[1:] + bytes(32)
            for body in standard_capabilities()
        ]
        assert open_port(FakeVfio(bodies)).status() == 0

    @pytest.mark.rule("PCI-015")
    def test_a_length_past_the_bar_is_cut(self):
        bodies = standard_capabilities()
        bodies[1] = capability(2, fake_vfio.NOTIFY, 0xFFFF_FFFF, size=20, multiplier=0x1000)
        device = FakeVfio(bodies)
        transport = open_port(device)
        assert transport.setup_queue(0, ADDRESSES).kind == "mmio16"
        with pytest.raises(errors.DeviceBroken, match="doorbell"):
            transport.setup_queue(1, ADDRESSES)

    @pytest.mark.rule("PCI-002", "LEG-017")
    def test_a_transitional_device_with_modern_capabilities_is_fine(self, sysfs, fake):
        (sysfs / "bus/pci/devices" / BDF / "device").write_text("0x1000\n")
        assert open_port(fake).status() == 0

    @pytest.mark.rule("LEG-001", "LEG-019")
    def test_a_legacy_only_device_is_named_as_such(self):
        with pytest.raises(errors.NotVirtioNet, match="legacy"):
            open_port(FakeVfio([]))

    def test_another_device_is_refused_before_it_is_opened(self, sysfs, fake):
        (sysfs / "bus/pci/devices" / BDF / "device").write_text("0x1042\n")
        with pytest.raises(errors.NotVirtioNet, match="1af4:1042"):
            open_port(fake)
        assert fake.events == []


class TestHostile:
    """Each lie of a device ends in the typed error, and in nothing left open."""

    def test_capability_loop(self, fake):
        fake.config[0x41] = 0x40
        with pytest.raises(errors.DeviceBroken, match="leads back"):
            open_port(fake)
        assert fake.events[-1] == "leave group"

    def test_capability_pointer_into_the_header(self, fake):
        fake.config[0x34] = 0x10
        with pytest.raises(errors.DeviceBroken, match="leads back"):
            open_port(fake)

    def test_capability_that_ends_past_the_configuration_space(self, fake):
        fake.config[0x34] = 0xF4
        fake.config[0xF4:] = bytes([0x09, 0, 16, 1, 4, 0, 0, 0, 0, 0, 0, 0])
        with pytest.raises(errors.DeviceBroken, match="capability of 16 bytes"):
            open_port(fake)

    @pytest.mark.rule("PCI-016")
    @pytest.mark.parametrize("kind", [1, 2])
    @pytest.mark.parametrize(
        ("offset", "length"),
        [
            (fake_vfio.BAR_SIZE, 0x1000),
            (0xFFFF_FFFC, 0x1000),
            (fake_vfio.BAR_SIZE - 1, 0x40),
            (0, 1),
            (1, 0x40),
        ],
    )
    def test_structure_outside_its_bar(self, kind, offset, length):
        bodies = [body for body in standard_capabilities() if body[1] != kind]
        bodies.append(capability(kind, offset, length, size=20, multiplier=4))
        with pytest.raises(errors.DeviceBroken, match="BAR 4"):
            open_port(FakeVfio(bodies))

    @pytest.mark.parametrize(("bar", "why"), [(6, "does not exist"), (0, "not memory")])
    def test_structure_in_a_bar_that_cannot_be(self, bar, why):
        bodies = [body for body in standard_capabilities() if body[1] != 1]
        with pytest.raises(errors.DeviceBroken, match=why):
            open_port(FakeVfio([*bodies, capability(1, 0, 0x1000, bar=bar)]))

    def test_notify_capability_too_short_for_its_multiplier(self):
        bodies = standard_capabilities()
        bodies[1] = capability(2, fake_vfio.NOTIFY, 0x1000)
        with pytest.raises(errors.DeviceBroken, match="16 bytes, 20"):
            open_port(FakeVfio(bodies))

    def test_reset_that_never_completes(self, fake, monkeypatch):
        monkeypatch.setattr(pci_function, "RESET_SECONDS", 0.01)
        transport = open_port(fake)
        transport.add_status(1)
        fake.stuck_reset = True
        with pytest.raises(errors.DeviceTimeout):
            transport.reset()
        transport.close()
        assert fake.events[-5:] == ["irqs 0", "dma off", "reset", "close", "leave group"]

    def test_generation_that_never_settles(self, fake):
        transport = open_port(fake)
        fake.unsettled = True
        with pytest.raises(errors.DeviceTimeout, match="changed"):
            transport.read_config(0, 6)

    @pytest.mark.rule("BAS-025")
    def test_config_shorter_than_the_features_promise(self):
        bodies = standard_capabilities()
        bodies[2] = capability(4, fake_vfio.DEVICE, 8)
        transport = open_port(FakeVfio(bodies))
        assert transport.read_config(6, 2) == b"\x01\x00"
        with pytest.raises(errors.DeviceBroken, match="8 bytes"):
            transport.read_config(10, 2)

    @pytest.mark.parametrize("off", [0x400, 0xFFFF])
    def test_notify_offset_outside_its_window(self, fake, off):
        fake.notify_offs = [off, 0, 0]
        transport = open_port(fake)
        with pytest.raises(errors.DeviceBroken, match="doorbell"):
            transport.setup_queue(0, ADDRESSES)
        assert "queue_enable" not in fake.queue(0)

    def test_doorbell_at_an_odd_address(self):
        bodies = standard_capabilities()
        bodies[1] = capability(2, fake_vfio.NOTIFY, 0x1000, size=20, multiplier=1)
        transport = open_port(FakeVfio(bodies))
        with pytest.raises(errors.DeviceBroken, match="doorbell"):
            transport.setup_queue(1, ADDRESSES)

    def test_queue_that_keeps_its_own_size(self, fake):
        fake.fixed_sizes = True
        with pytest.raises(errors.DeviceBroken, match="size of 64"):
            open_port(fake).setup_queue(0, QueueAddresses(64, 0, 0, 0))

    def test_queue_of_size_zero(self, fake):
        fake.queue_sizes = [0, 256, 64]
        with pytest.raises(errors.DeviceBroken, match="0 entries"):
            open_port(fake).setup_queue(0, ADDRESSES)

    def test_queue_larger_than_any_may_be(self, fake):
        fake.queue_sizes = [0x8001, 256, 64]
        with pytest.raises(errors.DeviceBroken, match="32768"):
            open_port(fake).queue_max_size(0)

    @pytest.mark.rule("PCI-047", "PCI-048")
    def test_vector_that_is_not_taken(self, fake):
        fake.refuse_vectors = True
        with pytest.raises(errors.DeviceBroken, match="MSI-X"):
            open_port(fake).setup_queue(0, ADDRESSES)
        assert "queue_enable" not in fake.queue(0)

    def test_device_that_goes_away(self, fake):
        transport = open_port(fake)
        fake.gone = True
        calls = [
            transport.status,
            transport.offered_features,
            transport.reset,
            lambda: transport.read_config(0, 6),
            lambda: transport.setup_queue(0, ADDRESSES),
        ]
        for call in calls:
            with pytest.raises(errors.DeviceGone):
                call()

    def test_device_file_that_fails(self, fake, monkeypatch):
        transport = open_port(fake)
        monkeypatch.setattr(fake, "pread", lambda n, at: os.read(-1, n))
        with pytest.raises(errors.DeviceGone):
            transport.status()
