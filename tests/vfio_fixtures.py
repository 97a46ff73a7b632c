"""Fixtures of the VFIO tests: a made-up /sys, kernel, DMA memory and device."""

import pytest
from fake_kernel import FakeKernel
from fake_sysfs import BDF
from fake_vfio import FakeIommu, FakeVfio

from pyvirtnet import dma
from pyvirtnet.transport.vfio_pci import VfioPciTransport
from pyvirtnet.vfio.file import File


@pytest.fixture
def sysfs(tmp_path, monkeypatch):
    """Stands for /sys."""
    monkeypatch.setattr("pyvirtnet.vfio.function.SYS", tmp_path)
    monkeypatch.setattr("pyvirtnet.vfio.problems.SYS", tmp_path)
    return tmp_path


@pytest.fixture
def memory(monkeypatch):
    """DMA memory of the test's own."""
    own = dma.Memory()
    monkeypatch.setattr("pyvirtnet.vfio.container.memory", own)
    return own


@pytest.fixture
def kernel(monkeypatch, memory):
    """Stands for /dev/vfio; nothing of it may be open when the test is over."""
    made = FakeKernel()
    monkeypatch.setattr(File, "open", made.open)
    yield made
    assert made.open_files == []


@pytest.fixture
def fake():
    """A device whose rules must hold when the test is over."""
    device = FakeVfio()
    yield device
    assert device.violations == []


def open_port(device):
    return VfioPciTransport(BDF, FakeIommu(device))
