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


def status(*values):
    def act(fake):
        for value in values:
            write("device_status", value, 1)(fake)

    return act


READ_ONLY = [(name, width) for width, name, writable in COMMON_FIELDS.values() if not writable]
BREACHES = [
    (read(0x14, 2), "2-byte read of common config at 0x14"),
    (read(0x15, 4), "4-byte read of common config at 0x15"),
    (read(0x12, 1), "1-byte read of common config at 0x12"),
    (read(0x10, 4), "4-byte read of common config at 0x10"),
    (read(0x19, 2), "2-byte read of common config at 0x19"),
    (read(0x04, 2), "2-byte read of common config at 0x4"),
    (read(0x20, 8), "8-byte read of common config at 0x20"),
    (read(DEVICE, 4), "4-byte read of net config at 0"),
    (read(DEVICE + 12, 2), "2-byte read of net config at 12"),
    (write("queue_desc_lo", 1 << 32, 8), "8-byte write of common config at 0x20"),
    *((write(name, 0, width), f"write to {name}") for name, width in READ_ONLY),
    (lambda fake: fake.pwrite(b"\2", BAR + DEVICE), "write to net config at 0"),
    (lambda fake: fake.pwrite(b"\0", CONFIG + 0x43), "write to PCI config offset 0x43"),
    (write("queue_size", 0), "queue_size 0"),
    (write("queue_size", 96), "queue_size 96"),
    (write("queue_enable", 0), "queue_enable written with other than 1"),
    (enabled(write("queue_size", 64)), "queue_size written after queue_enable"),
    (enabled(write("queue_device_hi", 1, 4)), "queue_device_hi written after queue_enable"),
    (write("queue_msix_vector", 4), "vector 4 is past the table"),
    (status(3, 1), "status bits cleared: 0x1"),
]


@pytest.mark.rule("BAS-004", "BAS-032", "NET-017", "PCI-005", "PCI-006", "PCI-007", "PCI-017",
                  "PCI-019", "PCI-021", "PCI-022", "PCI-024", "PCI-039", "PCI-040",
                  "PCI-046")  # fmt: skip
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
