"""tools/bind on a machine without an IOMMU: it says so, and what it forces it takes back."""

import pytest

from pyvirtnet.bind import Host, status
from pyvirtnet.cli import bind as tool

MACHINE = {"ports": 2, "iommu": "none"}

NIC = "0000:00:04.0"
HOST = Host()


def test_status_and_refusal_name_the_mend(capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main(["status"]) == 0
    assert tool.main([NIC]) == 3
    told = capsys.readouterr()
    assert "no IOMMU here" in told.out
    assert "no IOMMU group" in told.err
    assert "intel_iommu=on" in told.out
    assert "intel_iommu=on" in told.err
    assert "no IOMMU" in next(nic for nic in status(HOST) if nic.bdf == NIC).obstacles


def test_the_kernels_refusal_is_rolled_back(capsys: pytest.CaptureFixture[str]) -> None:
    names = HOST.interfaces(NIC)
    assert tool.main([NIC, "--force"]) == 3  # vfio-pci's probe fails
    told = capsys.readouterr()
    assert "vfio-pci did not take 0000:00:04.0" in told.err
    assert "put back as it was" in told.out
    assert HOST.driver(NIC) == "virtio-pci"
    assert not (HOST.run / f"pyvirtnet/bind/{NIC}.json").exists()
    assert tool.main(["restore", NIC]) == 0
    assert HOST.interfaces(NIC) == names


def test_a_kernel_without_no_iommu_mode_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main(["--noiommu", NIC]) == 1
    told = capsys.readouterr()
    assert "CONFIG_VFIO_NOIOMMU" in told.err
    assert "ALL memory of this machine" in told.out
    assert HOST.driver(NIC) == "virtio-pci"
