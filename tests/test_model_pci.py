"""The strict PCI function of the tests objects when a driver breaks its rules (VIRTIO 1.3, 4.1)."""

import pytest
from fake_pci_config import COMMON, DEVICE
from fake_vfio import COMMON_FIELDS, REGION_SHIFT, FakeVfio

BAR, CONFIG = 4 << REGION_SHIFT, 7 << REGION_SHIFT
AT = {name: BAR + COMMON + offset for offset, (_, name, _) in COMMON_FIELDS.items()}


def write(name, value, width=2):
    return lambda fake: fake.pwrite(value.to_bytes(width, "little"), AT[name])


def read(offset, width):
    return lambda fake: fake.pread(width, BAR + offset)


def enabled(then):
    def act(fake):
        write("queue_enable", 1)(fake)
        then(fake)

    return act


rule = pytest.mark.rule
READ_ONLY = [(name, width) for width, name, writable in COMMON_FIELDS.values() if not writable]
BREACHES = [
    pytest.param(read(0x14, 2), "2-byte read of common config at 0x14", marks=rule("PCI-005")),
    pytest.param(read(0x15, 4), "4-byte read of common config at 0x15", marks=rule("PCI-005")),
    pytest.param(read(0x12, 1), "1-byte read of common config at 0x12", marks=rule("PCI-006")),
    pytest.param(read(0x10, 4), "4-byte read of common config at 0x10", marks=rule("PCI-006")),
    pytest.param(read(0x19, 2), "2-byte read of common config at 0x19", marks=rule("PCI-006")),
    pytest.param(read(0x04, 2), "2-byte read of common config at 0x4", marks=rule("PCI-007")),
    pytest.param(read(0x20, 8), "8-byte read of common config at 0x20", marks=rule("PCI-007")),
    pytest.param(read(DEVICE, 4), "4-byte read of net config at 0", marks=rule("PCI-005")),
    pytest.param(read(DEVICE + 12, 2), "2-byte read of net config at 12", marks=rule("PCI-007")),
    pytest.param(
        write("queue_desc_lo", 1 << 32, 8), "8-byte write of common config at 0x20",
        marks=rule("PCI-007"),
    ),
    *(
        pytest.param(write(name, 0, width), f"write to {name}", marks=rule("PCI-019"))
        for name, width in READ_ONLY
    ),
    pytest.param(
        lambda fake: fake.pwrite(b"\2", BAR + DEVICE), "write to net config at 0",
        marks=rule("BAS-032", "NET-017"),
    ),
    pytest.param(write("queue_size", 0), "queue_size 0", marks=rule("PCI-021")),
    pytest.param(write("queue_size", 96), "queue_size 96", marks=rule("PCI-021")),
    pytest.param(
        write("queue_enable", 0), "queue_enable written with other than 1", marks=rule("PCI-024")
    ),
    pytest.param(
        enabled(write("queue_size", 64)), "queue_size written after queue_enable",
        marks=rule("PCI-022"),
    ),
    pytest.param(
        enabled(write("queue_device_hi", 1, 4)), "queue_device_hi written after queue_enable",
        marks=rule("PCI-022"),
    ),
    pytest.param(
        write("queue_msix_vector", 4), "vector 4 is past the table", marks=rule("PCI-046")
    ),
    pytest.param(
        lambda fake: fake.pwrite(b"\0", CONFIG + 0x43), "write to PCI config offset 0x43",
        marks=rule("PCI-017", "PCI-039", "PCI-040"),
    ),
    pytest.param(
        lambda fake: (write("device_status", 3, 1)(fake), write("device_status", 1, 1)(fake)),
        "status bits cleared: 0x1", marks=rule("BAS-004"),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("act", "words"), BREACHES)
def test_a_breach(act, words):
    fake = FakeVfio()
    act(fake)
    assert fake.violations == [words]


@pytest.mark.parametrize("name", [name for name, _ in READ_ONLY])
def test_registers_that_may_only_be_read_may_be_read(name):
    fake = FakeVfio()
    width = next(width for width, known, _ in COMMON_FIELDS.values() if known == name)
    assert len(fake.pread(width, AT[name])) == width
    assert fake.violations == []
