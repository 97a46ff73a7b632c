"""Rules of the PCI transport, held by the driver (VIRTIO 1.3, 4.1): a port on a strict function."""

import os
import struct

import fake_vfio
import pytest
from fake_pci_config import COMMON, DEVICE, ISR, NOTIFY, capability, standard_capabilities
from fake_sysfs import BDF, make_sysfs
from fake_vfio import CONFIG_REGION, FakeIommu, FakeVfio
from nic import frames
from vfio_fixtures import open_port

from pyvirtnet import Port, errors
from pyvirtnet.negotiate import ON_REQUEST, SUPPORTED, to_bits
from pyvirtnet.spec import Feature
from pyvirtnet.transport import pci_function
from pyvirtnet.transport.vfio_pci import VfioPciTransport

pytest_plugins = ["vfio_fixtures"]

COMMON_CONFIG, NET_CONFIG = range(COMMON, 0x38), range(DEVICE, 0x3000)


@pytest.fixture(autouse=True)
def _function(sysfs):
    make_sysfs(sysfs)


def whole_life(fake):
    """Opened, asked for all it says of itself, sent through, reset, closed."""
    with Port(VfioPciTransport(BDF, FakeIommu(fake))) as port:
        assert port.mac == bytes.fromhex("525400000001")
        assert port.link.up
        port.info()
        assert port.send_burst(frames(3)) == 3
        assert len(port.recv_burst(8)) == 0
        assert len(port.recv_burst(8, timeout=0.01)) == 0
        port.reset()
        assert port.send_burst(frames(3)) == 3
    assert fake.violations == []
    return fake.accesses


def touched(accesses, kind, region, where):
    """(offset, width) of accesses of a kind in a region that begin in a range."""
    return {
        (at, n) for did, place, at, n in accesses if (did, place) == (kind, region) if at in where
    }


# ---- accesses ------------------------------------------------------------------------------------


@pytest.mark.rule("BAS-032", "NET-017", "PCI-005", "PCI-006", "PCI-007", "PCI-008", "PCI-017",
                  "PCI-019", "PCI-021", "PCI-022", "PCI-024", "PCI-035")  # fmt: skip
def test_a_whole_life_keeps_to_the_rules_of_access(fake):
    """The function objects to a wrong width, to a read-only register written, and to much else."""
    fake.features |= 1 << Feature.SPEED_DUPLEX | 1 << Feature.MTU
    accesses = whole_life(fake)
    written = touched(accesses, "write", 4, COMMON_CONFIG)
    assert {at for at, _ in written} == {
        at
        for at, (_, name, writable) in fake_vfio.COMMON_FIELDS.items()
        if writable and name != "queue_reset"
    }
    assert touched(accesses, "read", 4, NET_CONFIG) > {(DEVICE + at, 1) for at in range(6)}
    assert touched(accesses, "write", 4, NET_CONFIG) == set()
    assert touched(accesses, "read", 4, range(ISR, DEVICE)) == set()
    assert touched(accesses, "write", CONFIG_REGION, range(256)) == {(4, 2)}  # bus mastering


@pytest.mark.rule("PCI-037", "PCI-038", "PCI-039", "PCI-040")
def test_vendor_data_and_access_through_configuration_are_left_alone(fake):
    """Of capabilities that are not used, only what tells their kind is read; none is written."""
    unused = {0x40: capability(9, 0x1AF4, 0), 0x50: capability(5, 0, 0, size=20, multiplier=0)}
    bodies = [*unused.values(), *standard_capabilities()[1:]]
    fake.config[:] = fake_vfio.make_config(bodies)
    assert [fake.config[at + 3] for at in unused] == [9, 5]
    accesses = whole_life(fake)
    for at, body in unused.items():
        there = range(at, at + 2 + len(body))
        assert touched(accesses, "read", CONFIG_REGION, there) == {
            (at, 1),
            (at + 1, 1),
            (at + 3, 1),
        }
        assert touched(accesses, "write", CONFIG_REGION, there) == set()


@pytest.mark.rule("PCI-051", "PCI-053")
def test_a_kick_is_the_queues_index_in_16_bits(fake):
    """Stored by the hot path itself: what lies around its two bytes stays."""
    noise = b"\xee" * 0x100
    os.pwrite(fake.memory, noise, NOTIFY)
    with Port(VfioPciTransport(BDF, FakeIommu(fake))) as port:
        wanted = bytearray(noise)
        wanted[0:2] = bytes([0, 0])  # posted receive buffers
        assert os.pread(fake.memory, 0x100, NOTIFY) == wanted
        assert port.send_burst(frames(1)) == 1
        wanted[4:6] = bytes([1, 0])
        assert os.pread(fake.memory, 0x100, NOTIFY) == wanted


@pytest.mark.rule("PCI-052", "PCI-054")
@pytest.mark.parametrize("packed", [0, 1], ids=["split", "packed"])
def test_a_kick_with_data_is_32_bits_the_queues_index_low(fake, packed):
    """Above it, what is exposed next: an index, or a place with the wrap counter on top."""
    fake.features |= 1 << Feature.NOTIFICATION_DATA | packed << Feature.RING_PACKED
    noise = b"\xee" * 0x100
    os.pwrite(fake.memory, noise, NOTIFY)
    with Port(VfioPciTransport(BDF, FakeIommu(fake))) as port:
        wanted = bytearray(noise)
        where = 0 if packed else 256  # 256 buffers: the first lap is over, or 256 is the index
        wanted[0:4] = struct.pack("<HH", 0, where)
        assert os.pread(fake.memory, 0x100, NOTIFY) == wanted
        for sent in (3, 6):
            assert port.send_burst(frames(3)) == 3
            wanted[4:8] = struct.pack("<HH", 1, sent | packed << 15)
            assert os.pread(fake.memory, 0x100, NOTIFY) == wanted


@pytest.mark.rule("PCI-020")
@pytest.mark.parametrize("sizes", [[256, 256, 64], [100, 3, 5], [32768, 1000, 64]])
@pytest.mark.parametrize("ring_size", [None, 2, 3])
def test_sizes_written_for_packed_rings(fake, sizes, ring_size):
    """The function objects to 0, and here to nothing else."""
    fake.features |= 1 << Feature.RING_PACKED | 1 << Feature.CTRL_VQ
    fake.queue_sizes = sizes
    fake._virtio_reset()
    with Port(VfioPciTransport(BDF, FakeIommu(fake)), ring_size=ring_size) as port:
        assert port.info()["ring_format"] == "packed"
        assert [fake.queue(i)["queue_size"] for i in (0, 1)] == [ring_size or n for n in sizes[:2]]
    assert fake.violations == []


# ---- identity ------------------------------------------------------------------------------------


@pytest.mark.rule("PCI-001", "PCI-002")
@pytest.mark.parametrize(
    ("vendor", "device", "ours"),
    [
        (0x1AF4, 0x1041, True),
        (0x1AF4, 0x1000, True),
        (0x1AF4, 0x1042, False),
        (0x1AF4, 0x1001, False),
        (0x1AF5, 0x1041, False),
        (0x8086, 0x1000, False),
    ],
)
def test_who_is_a_network_device(sysfs, fake, vendor, device, ours):
    for name, value in (("vendor", vendor), ("device", device)):
        (sysfs / "bus/pci/devices" / BDF / name).write_text(f"{value:#06x}\n")
    if ours:
        assert open_port(fake).status() == 0
    else:
        with pytest.raises(errors.NotVirtioNet):
            open_port(fake)


@pytest.mark.rule("PCI-003", "PCI-004")
@pytest.mark.parametrize("revision", [0, 1, 2, 0xFF])
def test_any_revision_and_any_subsystem_will_do(sysfs, fake, revision):
    fake.config[0x08] = revision
    fake.config[0x2C:0x30] = os.urandom(4)
    (sysfs / "bus/pci/devices" / BDF / "revision").write_text(f"{revision:#04x}\n")
    whole_life(fake)


# ---- features, reset -----------------------------------------------------------------------------


@pytest.mark.rule("BAS-007", "BAS-010", "BAS-012", "BAS-016", "RSV-001", "RSV-003", "RSV-010")
def test_a_function_that_offers_every_bit(fake):
    fake.features = (1 << 64) - 1
    fake.queue_sizes, fake.notify_offs = [256] * 4 + [64], [0, 1, 2, 3, 4]
    with Port(VfioPciTransport(BDF, FakeIommu(fake))):
        assert fake.state("driver_feature") == to_bits(SUPPORTED - ON_REQUEST)
        enabled = [index for index in range(5) if fake.queue(index).get("queue_enable")]
        assert enabled == [0, 1, 4]


@pytest.mark.rule("BAS-019", "PCI-023")
def test_a_reset_that_takes_its_time_is_waited_for(fake, monkeypatch):
    transport = open_port(fake)
    transport.add_status(1)
    answers = iter([0x0F, 0x0F, 1, 0])
    real = fake.pread
    monkeypatch.setattr(
        fake, "pread", lambda n, at: bytes([next(answers)]) if at & 0xFFFF == 0x14 else real(n, at)
    )
    transport.reset()
    assert next(answers, None) is None
    assert pci_function.RESET_SECONDS >= 1


# ---- configuration space -------------------------------------------------------------------------


@pytest.mark.rule("BAS-020", "BAS-021", "BAS-022")
@pytest.mark.parametrize(("offset", "length"), [(0, 6), (0, 17), (10, 7)])
@pytest.mark.parametrize("reads", range(1, 8))
def test_configuration_that_changes_between_two_reads_is_of_one_moment(
    fake, monkeypatch, offset, length, reads
):
    """After so many of its fields were read, all of it changes, and its generation with it."""
    transport = open_port(fake)
    before, after = (os.pread(fake.memory, 20, DEVICE), bytes(range(100, 120)))
    seen = []
    real = fake.pread

    def pread(n, at):
        data = real(n, at)
        if DEVICE <= at & 0xFFFF < NOTIFY:
            seen.append(at)
            if len(seen) == reads:
                os.pwrite(fake.memory, after, DEVICE)
                fake._state["config_generation"] += 1
        return data

    monkeypatch.setattr(fake, "pread", pread)
    got = transport.read_config(offset, length)
    wanted = after if len(seen) > reads else before
    assert got == wanted[offset : offset + length]
    assert len(seen) != reads or reads > length


@pytest.mark.rule("BAS-024", "BAS-025")
@pytest.mark.parametrize("length", [6, 8, 12, 17, 20, 28, 0x1000, 0xFFFF_FFFF])
def test_a_configuration_of_any_size_with_the_fields_in_it(length):
    bodies = standard_capabilities()
    bodies[2] = capability(4, DEVICE, length)
    transport = open_port(FakeVfio(bodies))
    assert transport.read_config(0, 6) == bytes.fromhex("525400000001")
    if length >= 8:
        assert transport.read_config(6, 2) == b"\1\0"


# ---- interrupts ----------------------------------------------------------------------------------


@pytest.mark.rule("PCI-043", "PCI-044", "PCI-045", "PCI-046")
@pytest.mark.parametrize("vectors", [1, 2, 3, 4, 5, 64, 2047, 2048])
def test_msix_tables_of_any_size(fake, vectors):
    """A vector past the end would be a violation."""
    fake.msix_count = vectors
    with Port(VfioPciTransport(BDF, FakeIommu(fake))):
        used = {fake.queue(index)["queue_msix_vector"] for index in (0, 1)}
        assert used | {fake.state("config_msix_vector")} <= set(range(min(vectors, 4)))
        assert len(fake.vectors) == min(vectors, 4)
