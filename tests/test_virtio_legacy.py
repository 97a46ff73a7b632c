"""The legacy transport against a made-up device; rings as legacy devices want them."""

import pytest
from fake_legacy import FakeLegacy
from fake_sysfs import BDF, make_sysfs
from fake_vfio import FakeIommu
from nic import PLAIN, frames

from pyvirtnet import errors
from pyvirtnet._ring import ring_bytes, ring_parts
from pyvirtnet.spec import Status
from pyvirtnet.testing import header, mask, net, rules
from pyvirtnet.transport import open_transport
from pyvirtnet.transport.base import QueueAddresses
from pyvirtnet.transport.pci_caps import LegacyOnly
from pyvirtnet.transport.sim import SimTransport
from pyvirtnet.transport.vfio_pci import VfioPciTransport
from pyvirtnet.transport.virtio_legacy import VirtioLegacyTransport
from pyvirtnet.vfio import choice

pytest_plugins = ["vfio_fixtures"]

BASE = 0x1_2340_0000
MRG_RXBUF, VERSION_1, ANY_LAYOUT = 1 << 15, 1 << 32, 1 << 27


@pytest.fixture
def legacy(sysfs):
    make_sysfs(sysfs, device=0x1000)
    device = FakeLegacy()
    yield device
    assert device.violations == []


def bare(device):
    iommu = FakeIommu(device)
    iommu.physical = True
    return iommu


def open_port(device):
    return VirtioLegacyTransport(BDF, bare(device))


def addresses(size=256, base=BASE):
    return QueueAddresses(size, *(base + part for part in ring_parts(size, alignment=4096)))


class Reopening(FakeIommu):
    """Gives the same function again and again."""

    physical = True

    def open_device(self, function):
        self.file.fd = 1000
        return super().open_device(function)


class TestChoice:
    @pytest.mark.rule("LEG-003", "LEG-004", "LEG-018")
    def test_a_device_without_modern_registers_is_driven_by_the_others(self, legacy, monkeypatch):
        monkeypatch.setattr(choice, "iommu_for", lambda *_, **__: Reopening(legacy))
        transport = open_transport(BDF, noiommu=True)
        assert type(transport) is VirtioLegacyTransport
        transport.close()

    def test_an_unknown_option_is_refused(self):
        with pytest.raises(errors.NoSuchDevice, match=r"noiommu=on or .*iommufd=on"):
            open_transport(f"{BDF}?noiommu=perhaps")

    def test_a_device_without_modern_registers_says_so(self, legacy):
        with pytest.raises(LegacyOnly, match="only the legacy interface"):
            VfioPciTransport(BDF, bare(legacy))

    def test_behind_an_iommu_it_is_refused(self, legacy):
        with pytest.raises(errors.NoIommu, match="physical ones, past any IOMMU"):
            VirtioLegacyTransport(BDF, FakeIommu(legacy))
        assert legacy.closed


class TestFeatures:
    @pytest.mark.rule("LEG-007", "LEG-021", "LEG-022")
    def test_what_is_accepted_and_that_features_ok_stays_here(self, legacy):
        transport = open_port(legacy)
        assert transport.offered_features() == legacy.features & ~ANY_LAYOUT | VERSION_1
        transport.add_status(Status.ACKNOWLEDGE)
        transport.accept_features(VERSION_1 | MRG_RXBUF)
        transport.add_status(Status.FEATURES_OK)
        assert legacy.registers["driver_features"] == MRG_RXBUF | ANY_LAYOUT
        assert transport.status() == Status.ACKNOWLEDGE | Status.FEATURES_OK
        assert legacy.registers["status"] == Status.ACKNOWLEDGE
        transport.reset()
        assert transport.status() == 0

    @pytest.mark.rule("LEG-033", "LEG-034", "LEG-035", "LEG-036")
    def test_what_it_cannot_do_without(self, legacy):
        legacy.features &= ~ANY_LAYOUT
        with pytest.raises(errors.FeatureMissing, match="any_layout"):
            open_port(legacy).offered_features()


class TestQueues:
    @pytest.mark.rule("LEG-008", "LEG-009", "LEG-010", "LEG-014")
    def test_a_queue_is_a_page_number(self, legacy):
        transport = open_port(legacy)
        doorbell = transport.setup_queue(1, addresses())
        assert legacy.pfns == [0, BASE >> 12]
        doorbell.target(doorbell.value)
        assert legacy.notifications == [1]
        transport.reset()
        assert legacy.pfns == [0, 0]

    @pytest.mark.parametrize(
        "wrong",
        [
            QueueAddresses(256, *(BASE + part for part in ring_parts(256))),
            addresses(base=BASE + 2048),
            addresses(base=1 << 44),
        ],
    )
    def test_a_queue_that_is_laid_out_otherwise_is_refused(self, legacy, wrong):
        with pytest.raises(ValueError, match="not laid out"):
            open_port(legacy).setup_queue(0, wrong)

    def test_the_size_is_the_devices(self, legacy):
        with pytest.raises(ValueError, match="have 256"):
            open_port(legacy).setup_queue(0, addresses(128))

    def test_a_size_that_no_queue_has_is_a_lie(self, legacy):
        legacy.queue_sizes = [256, 0x8001]
        with pytest.raises(errors.DeviceBroken, match="more than 32768"):
            open_port(legacy)
        assert legacy.closed

    def test_each_queue_has_a_vector_of_its_own(self, legacy):
        transport = open_port(legacy)
        for index in (0, 1):
            transport.setup_queue(index, addresses(base=BASE + index * 0x10000))
        assert legacy.queue_vectors == [1, 2]
        assert legacy.registers["config_vector"] == 0

    def test_a_vector_that_could_not_be_mapped(self, legacy):
        legacy.refuse_vectors = True
        with pytest.raises(errors.DeviceBroken, match="could not map MSI-X vector"):
            open_port(legacy).setup_queue(0, addresses())


class TestConfiguration:
    @pytest.mark.rule("LEG-015", "LEG-005", "LEG-016", "LEG-024")
    @pytest.mark.parametrize("msix", [0, 4])
    def test_it_lies_further_on_with_msix(self, legacy, msix):
        legacy.msix_count = msix
        transport = open_port(legacy)
        assert transport.read_config(0, 6).hex() == "525400000001"
        assert transport.read_config(6, 2) == b"\1\0"
        assert transport.interrupt_fd(0) >= 0 if msix else transport.interrupt_fd(0) == -1

    def test_one_that_never_settles(self, legacy):
        transport = open_port(legacy)
        legacy.unsettled = True
        with pytest.raises(errors.DeviceTimeout, match="changed in each"):
            transport.read_config(0, 6)

    @pytest.mark.parametrize("msix", [0, 4])
    def test_it_is_written_byte_by_byte(self, legacy, msix):
        legacy.msix_count = msix
        transport = open_port(legacy)
        transport.write_config(0, bytes.fromhex("020000000009"))
        assert transport.read_config(0, 8).hex() == "0200000000090100"

    def test_past_the_end_of_the_bar(self, legacy):
        with pytest.raises(errors.DeviceBroken, match="configuration ends"):
            open_port(legacy).read_config(60, 4)


class TestLife:
    def test_a_device_that_has_gone(self, legacy):
        transport = open_port(legacy)
        legacy.gone = True
        with pytest.raises(errors.DeviceGone, match="all ones"):
            transport.status()
        transport.close()
        assert legacy.closed

    def test_close_stops_it_before_anything_is_given_up(self, legacy):
        transport = open_port(legacy)
        legacy.events.clear()
        transport.close()
        order = ["virtio reset", "irqs 0", "dma off", "reset", "close", "leave group"]
        assert legacy.events == order


class TestRings:
    @pytest.mark.parametrize("size", [8, 64, 256, 1024, 32768])
    def test_the_used_ring_begins_a_page(self, size):
        """As the specification's vring_size() has it (2.7.2)."""
        descriptors, driver, device = ring_parts(size, alignment=4096)
        assert (descriptors, driver) == (0, 16 * size)
        assert device == (driver + 2 * (3 + size) + 4095) & ~4095
        assert ring_bytes(size, alignment=4096) == device + (6 + 8 * size + 4095) // 4096 * 4096

    @pytest.mark.rule("LEG-009", "LEG-010", "LEG-011", "LEG-026")
    def test_frames_pass_through_such_rings(self, make_nic, monkeypatch):
        monkeypatch.setattr(SimTransport, "ring_alignment", 4096)
        nic = make_nic()
        for size in (60, 1514, 9014):
            nic.pass_through(frames(300, size))
            sent = frames(20, size)
            assert nic.port.send_burst(sent) == len(sent)
            assert nic.transmitted() == sent

    @pytest.mark.parametrize("size", [60, 1514, 4084])
    def test_without_mergeable_buffers_the_header_has_ten_bytes(self, make_nic, monkeypatch, size):
        monkeypatch.setattr(SimTransport, "ring_alignment", 4096)
        monkeypatch.setattr(SimTransport, "plain_header_bytes", 10)
        for module in (net, rules):
            monkeypatch.setattr(module, "HEADER", 10)
        monkeypatch.setattr(header, "_SIZE", 10)
        monkeypatch.setattr(header, "_BLANK", bytes(10))
        nic = make_nic(offered=PLAIN & ~mask("mrg_rxbuf"))
        for first in range(0, 1000, 50):
            content = frames(50, size, first)
            assert nic.device.deliver(*content, header=bytes(8))
            burst = nic.port.recv_burst(64)
            assert [bytes(frame) for frame in burst] == content
            assert nic.port.send_burst(burst) == 50
            assert nic.transmitted() == content
