"""The virtio-pci transport against the fake device: access rules, life cycle, interrupts."""

import ctypes
import os

import fake_vfio
import pytest
from fake_pci_config import COMMON, capability, standard_capabilities
from fake_sysfs import BDF, make_sysfs
from fake_vfio import FakeIommu, FakeVfio
from vfio_fixtures import open_port

from pyvirtnet import errors
from pyvirtnet.transport import pci_function
from pyvirtnet.transport.base import QueueAddresses
from pyvirtnet.vfio.device import Device
from pyvirtnet.vfio.function import Function

RING_RESET = 1 << 40
ADDRESSES = QueueAddresses(256, 0x1_2345_6000, 0x1_2345_7000, 0x1_2345_8000)

pytest_plugins = ["vfio_fixtures"]


@pytest.fixture(autouse=True)
def _function(sysfs):
    make_sysfs(sysfs)


class TestLife:
    def test_open_resets_a_device_that_was_left_running(self, fake):
        fake.power(0x0F)
        assert open_port(fake).status() == 0

    def test_open_enables_dma_after_the_reset_and_sets_all_vectors_in_one_call(self, fake):
        open_port(fake)
        assert fake.events == ["open", "virtio reset", "dma on", "irqs 4"]

    @pytest.mark.rule("BAS-042")
    def test_close_stops_the_device_before_anything_is_given_up(self, fake):
        transport = open_port(fake)
        fake.events.clear()
        transport.close()
        order = ["virtio reset", "irqs 0", "dma off", "reset", "close", "leave group"]
        assert fake.events == order

    def test_close_may_be_called_twice(self, fake):
        transport = open_port(fake)
        transport.close()
        fake.events.clear()
        transport.close()
        assert fake.events == []

    def test_close_without_function_level_reset(self, fake):
        fake.can_reset = False
        open_port(fake).close()
        assert "reset" not in fake.events
        assert fake.events[-2:] == ["close", "leave group"]

    def test_close_of_a_device_that_has_gone_does_not_raise(self, fake):
        transport = open_port(fake)
        fake.gone = True
        transport.close()
        assert fake.events[-2:] == ["close", "leave group"]

    def test_close_closes_every_eventfd(self, fake):
        transport = open_port(fake)
        fds = [transport.interrupt_fd(index) for index in (None, 0, 1, 2)]
        transport.close()
        for fd in fds:
            with pytest.raises(OSError):
                os.fstat(fd)

    def test_close_unmaps_the_doorbells(self, fake):
        transport = open_port(fake)
        transport.setup_queue(0, ADDRESSES)
        transport.close()
        assert [page.closed for page in fake.pages] == [True]

    def test_use_after_close_is_refused(self, fake):
        transport = open_port(fake)
        transport.close()
        with pytest.raises(errors.PortClosed):
            transport.status()

    def test_abandon_closes_files_and_leaves_the_device_alone(self, fake):
        transport = open_port(fake)
        transport.setup_queue(0, ADDRESSES)
        fake.events.clear()
        fake.accesses.clear()
        transport.abandon()
        assert fake.events == ["close", "abandon"]
        assert fake.accesses == []

    def test_a_failed_open_gives_everything_up(self, fake):
        fake.notify_offs = [0] * 3
        fake.config[0x06] = 0  # no capability list
        with pytest.raises(errors.NotVirtioNet):
            open_port(fake)
        assert fake.events[-2:] == ["close", "leave group"]

    def test_a_failure_while_the_device_is_asked_for_its_regions(self, fake, monkeypatch):
        monkeypatch.setattr(fake, "_region_info", lambda view: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            open_port(fake)
        assert fake.events[-2:] == ["close", "leave group"]


class TestRegisters:
    def test_features_are_64_bits_in_two_halves(self, fake):
        fake.features = 0xDEADBEEF_00C0FFEE
        assert open_port(fake).offered_features() == 0xDEADBEEF_00C0FFEE

    def test_accepted_features_reach_the_device(self, fake):
        open_port(fake).accept_features(1 << 33 | 1 << 32 | 1 << 15)
        assert fake.state("driver_feature") == 1 << 33 | 1 << 32 | 1 << 15

    @pytest.mark.rule("RSV-005")
    def test_a_device_that_would_go_past_the_iommu_is_refused(self, fake):
        with pytest.raises(errors.NoIommu, match="iommu_platform=on"):
            open_port(fake).accept_features(1 << 32 | 1 << 15)
        assert fake.state("driver_feature") == 0

    def test_status_bits_add_up(self, fake):
        transport = open_port(fake)
        for bits in (1, 2, 8):
            transport.add_status(bits)
        assert transport.status() == 11

    @pytest.mark.parametrize(
        ("offset", "width"), [(1, 2), (2, 4), (0x4000, 1), (0x3FFE, 4), (-4, 4)]
    )
    def test_access_that_is_not_aligned_or_not_inside(self, fake, offset, width):
        device = Device(Function(BDF), FakeIommu(fake))
        fake.accesses.clear()
        with pytest.raises(ValueError, match=f"{width}-byte access"):
            device.read(4, offset, width)
        assert fake.accesses == []

    @pytest.mark.rule("PCI-005", "PCI-006", "PCI-007")
    def test_config_fields_are_read_in_their_own_width(self, fake):
        transport = open_port(fake)
        assert transport.read_config(0, 6) == bytes.fromhex("525400000001")
        assert transport.read_config(10, 2) == (1500).to_bytes(2, "little")
        assert transport.read_config(12, 4) == (10000).to_bytes(4, "little")
        assert transport.read_config(0, 17) == fake_vfio.NET_CONFIG[:17]

    def test_part_of_a_field_is_cut_out_of_the_whole(self, fake):
        transport = open_port(fake)
        assert transport.read_config(7, 2) == fake_vfio.NET_CONFIG[7:9]
        assert transport.read_config(13, 3) == fake_vfio.NET_CONFIG[13:16]

    @pytest.mark.rule("BAS-022")
    def test_config_that_changes_once_is_read_again(self, fake, monkeypatch):
        transport = open_port(fake)
        answers = iter([b"\x01", b"\x02", b"\x02", b"\x02"])
        real = fake.pread
        monkeypatch.setattr(
            fake, "pread", lambda n, at: next(answers) if at & 0xFFF == 0x15 else real(n, at)
        )
        assert transport.read_config(10, 2) == (1500).to_bytes(2, "little")
        assert next(answers, None) is None

    @pytest.mark.rule("PCI-014", "PCI-018")
    def test_only_the_page_of_the_doorbell_is_mapped(self, fake):
        transport = open_port(fake)
        transport.setup_queue(0, ADDRESSES)
        transport.setup_queue(1, ADDRESSES)
        assert [event for event in fake.events if event[0] == "mmap"] == [("mmap", 0x3000, 0x1000)]


class TestQueues:
    @pytest.mark.rule("PCI-022")
    def test_a_queue_is_programmed_and_then_enabled(self, fake):
        open_port(fake).setup_queue(1, QueueAddresses(128, 0x1_2345_6000, 2 << 32, 0x3_0000_1000))
        queue = fake.queue(1)
        assert queue["queue_size"] == 128
        assert (queue["queue_desc_lo"], queue["queue_desc_hi"]) == (0x2345_6000, 1)
        assert (queue["queue_driver_lo"], queue["queue_driver_hi"]) == (0, 2)
        assert (queue["queue_device_lo"], queue["queue_device_hi"]) == (0x1000, 3)
        assert queue["queue_enable"] == 1

    def test_the_doorbell_is_the_devices_own_register(self, fake):
        transport = open_port(fake)  # keeps the doorbell mapped
        doorbell = transport.setup_queue(1, ADDRESSES)
        assert (doorbell.kind, doorbell.value) == ("mmio16", 1)
        ctypes.c_uint16.from_address(doorbell.target).value = doorbell.value
        assert fake.notified(1 * 4) == 1

    @pytest.mark.rule("PCI-051", "PCI-053")
    def test_a_doorbell_that_cannot_be_mapped_is_written_through_the_file(self, fake):
        fake.mappable = False
        doorbell = open_port(fake).setup_queue(2, QueueAddresses(64, 0, 0, 0))
        assert doorbell.kind == "call"
        doorbell.target(doorbell.value)
        assert fake.notified(2 * 4) == 2
        assert fake.accesses[-1] == ("write", 4, fake_vfio.NOTIFY + 8, 2)

    @pytest.mark.parametrize(
        ("windows", "kind"),
        [
            ([(0x3000, 0x1000)], "mmio16"),
            ([(0, 0x1000), (0x2000, 0x2000)], "mmio16"),
            ([(0, 0x3000)], "call"),
        ],
    )
    def test_sparse_mappings_are_honoured(self, fake, windows, kind):
        fake.windows = windows
        assert open_port(fake).setup_queue(0, ADDRESSES).kind == kind

    def test_a_multiplier_of_zero_gives_one_doorbell_for_all(self):
        bodies = standard_capabilities()
        bodies[1] = capability(2, fake_vfio.NOTIFY, 2, size=20, multiplier=0)
        transport = open_port(FakeVfio(bodies))
        first, second = (transport.setup_queue(index, ADDRESSES) for index in (0, 1))
        assert first.target == second.target
        assert (first.value, second.value) == (0, 1)

    def test_a_queue_that_does_not_exist_has_size_zero(self, fake):
        assert open_port(fake).queue_max_size(3) == 0

    @pytest.mark.rule("PCI-021")
    @pytest.mark.parametrize("size", [0, 3, 100])
    def test_a_split_queue_takes_a_power_of_two(self, fake, size):
        with pytest.raises(ValueError, match="power of two"):
            open_port(fake).setup_queue(0, QueueAddresses(size, 0, 0, 0))

    @pytest.mark.rule("PCI-025", "VQC-001")
    @pytest.mark.parametrize("reads", [0, 1, 5])
    def test_a_queue_reset_alone_is_awaited_and_set_up_anew(self, fake, reads):
        fake.features |= RING_RESET
        fake.queue_resets = reads
        transport = open_port(fake)
        transport.accept_features(transport.offered_features())
        for size in (256, 128, 256):
            transport.setup_queue(1, QueueAddresses(size, 1 << 32, 2 << 32, 3 << 32))
            assert fake.queue(1)["queue_size"] == size
            transport.reset_queue(1)
            assert fake.events[-1] == "queue 1 reset"
            assert "queue_enable" not in fake.queue(1)

    def test_a_queue_reset_that_never_completes(self, fake, monkeypatch):
        monkeypatch.setattr(pci_function, "RESET_SECONDS", 0.01)
        fake.features |= RING_RESET
        fake.queue_resets = 1 << 30
        transport = open_port(fake)
        transport.accept_features(transport.offered_features())
        transport.setup_queue(1, ADDRESSES)
        with pytest.raises(errors.DeviceTimeout, match="queue_reset was not 0"):
            transport.reset_queue(1)

    def test_without_its_register_no_queue_is_reset_alone(self):
        bodies = standard_capabilities()
        bodies[-1] = capability(1, COMMON, 0x38)
        fake = FakeVfio(bodies)
        fake.features |= RING_RESET
        assert not open_port(fake).offered_features() & RING_RESET


class TestInterrupts:
    def test_each_queue_has_a_vector_of_its_own_when_there_are_enough(self, fake):
        transport = open_port(fake)
        for index in range(3):
            transport.setup_queue(index, QueueAddresses(64, 0, 0, 0))
        assert fake.state("config_msix_vector") == 0
        assert [fake.queue(i)["queue_msix_vector"] for i in range(3)] == [1, 2, 3]
        fake.trigger(2)
        assert os.eventfd_read(transport.interrupt_fd(1)) == 1

    @pytest.mark.rule("PCI-043", "PCI-046")
    @pytest.mark.parametrize(
        ("count", "vectors"),
        [
            (1, [0, 0, 0, 0, 0]),
            (2, [1, 1, 1, 1, 1]),
            (3, [1, 2, 1, 2, 1]),
            (4, [1, 2, 3, 2, 1]),
        ],
    )
    def test_queues_share_when_there_are_too_few(self, fake, count, vectors):
        fake.msix_count = count
        fake.queue_sizes, fake.notify_offs = [64] * 5, list(range(5))
        transport = open_port(fake)
        for index in range(5):
            transport.setup_queue(index, QueueAddresses(64, 0, 0, 0))
        assert [fake.queue(i)["queue_msix_vector"] for i in range(5)] == vectors
        fds = [transport.interrupt_fd(index) for index in range(5)]
        assert fds == [fake.vectors[vector] for vector in vectors]

    def test_no_more_vectors_are_taken_than_there_is_use_for(self, fake):
        fake.msix_count = 2048
        open_port(fake)
        assert len(fake.vectors) == 4

    def test_as_many_vectors_as_the_processors_have_left(self, fake):
        """None was set then, and every wait slept its time out."""
        fake.msix_count, fake.free_vectors = 2048, 2
        transport = open_port(fake)
        assert len(fake.vectors) == 2
        transport.setup_queue(0, ADDRESSES)
        assert transport.interrupt_fd(0) == fake.vectors[1]

    def test_a_device_without_msix_has_no_interrupts(self, fake):
        fake.msix_count = 0
        transport = open_port(fake)
        transport.setup_queue(0, ADDRESSES)
        assert transport.interrupt_fd(0) == transport.interrupt_fd(None) == -1
        assert fake.queue(0)["queue_msix_vector"] == 0xFFFF

    def test_vectors_are_set_again_after_a_reset(self, fake):
        transport = open_port(fake)
        for _ in range(2):
            transport.reset()
            transport.setup_queue(0, ADDRESSES)
            assert fake.state("config_msix_vector") == 0
            assert fake.queue(0)["queue_msix_vector"] == 1
