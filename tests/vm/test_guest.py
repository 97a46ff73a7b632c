"""The guest is what a user finds: NICs with the kernel's driver, an IOMMU group for each."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

MACHINE = {"ports": 2}

NICS = ["0000:00:04.0", "0000:00:05.0"]
PCI = Path("/sys/bus/pci/devices")


@pytest.mark.parametrize("bdf", NICS)
def test_nic_is_with_the_kernels_driver(bdf: str) -> None:
    assert (PCI / bdf / "driver").resolve().name == "virtio-pci"
    assert (PCI / bdf / "vendor").read_text() + (PCI / bdf / "device").read_text() == (
        "0x1af4\n0x1041\n"
    )
    (interface,) = (PCI / bdf).glob("virtio*/net/*")
    expected = f"52:54:00:00:00:{NICS.index(bdf) + 1:02x}\n"
    assert (interface / "address").read_text() == expected
    assert interface.name != "eth0", "udev has not renamed it"


@pytest.mark.parametrize("bdf", NICS)
def test_nic_is_alone_in_its_iommu_group(bdf: str) -> None:
    group = (PCI / bdf / "iommu_group").resolve()
    assert [member.name for member in (group / "devices").iterdir()] == [bdf]


def test_vfio_pci_can_be_loaded() -> None:
    subprocess.run(["modprobe", "vfio-pci"], check=True)
    assert Path("/dev/vfio/vfio").is_char_device()


def test_clone_is_read_only() -> None:
    project = Path("/mnt/project")
    assert (project / "pyproject.toml").is_file()
    with pytest.raises(OSError, match="Read-only"):
        (project / "written-by-the-guest").touch()


def test_package_is_installed_not_borrowed_from_the_clone() -> None:
    code = "import pyvirtnet; print(pyvirtnet.__file__)"
    result = subprocess.run(
        [sys.executable, "-c", code], check=True, cwd="/", capture_output=True, text=True
    )
    assert result.stdout.startswith("/usr/local/lib/python3")


def test_there_is_an_ordinary_user() -> None:
    result = subprocess.run(
        ["setpriv", "--reuid=user", "--regid=user", "--init-groups", "id", "-un"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert result.stdout == "user\n"
    assert os.getuid() == 0, "the tests themselves run as root"
