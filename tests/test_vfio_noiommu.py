"""No-IOMMU mode against a made-up kernel: opt-in, loud, and memory where the device is told."""

import errno
import os
import warnings

import pytest
from fake_sysfs import BDF, make_sysfs

from pyvirtnet import dma, errors, hugepages
from pyvirtnet.arena import Arena
from pyvirtnet.vfio import choice, iommufd
from pyvirtnet.vfio.choice import iommu_for
from pyvirtnet.vfio.container import Container, container
from pyvirtnet.vfio.function import Function
from pyvirtnet.vfio.iommufd import address_space
from pyvirtnet.vfio.noiommu import BareContainer, UnsafeNoIommu, bare_container

NODE = "/dev/vfio/noiommu-7"

pytest_plugins = ["vfio_fixtures"]


@pytest.fixture
def function(sysfs, memory, monkeypatch):
    """A function whose group is VFIO's stand-in."""
    make_sysfs(sysfs)
    (sysfs / "kernel/iommu_groups/7/name").write_text("vfio-noiommu\n")
    monkeypatch.setattr("pyvirtnet.vfio.noiommu.arena", Arena(memory))
    return Function(BDF)


def open_bare(function):
    bare = BareContainer()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnsafeNoIommu)
        return bare, bare.open_device(function)


def test_it_takes_the_other_node_and_maps_nothing(function, kernel):
    bare, file = open_bare(function)
    assert kernel.events == [
        "open /dev/vfio/vfio",
        f"open {NODE}",
        f"set container of {NODE}",
        "iommu 8",
        f"device {BDF}",
    ]
    file.close()
    bare.close_device(function)
    assert kernel.mappings == {}


def test_opening_warns(function, kernel):
    bare = BareContainer()
    with pytest.warns(UnsafeNoIommu, match=f"{BDF} runs without an IOMMU"):
        bare.open_device(function).close()
    bare.close_device(function)


def test_a_warning_that_is_an_error_leaves_nothing_open(function, kernel):
    """The function could not be opened again: this process had it, and no way to close it."""
    bare = BareContainer()
    for _ in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("error", UnsafeNoIommu)
            with pytest.raises(UnsafeNoIommu):
                bare.open_device(function)
    with pytest.warns(UnsafeNoIommu):
        bare.open_device(function).close()
    bare.close_device(function)


def test_memory_from_then_on_is_physical_and_seen_to_be(function, kernel, memory, monkeypatch):
    bare, file = open_bare(function)
    monkeypatch.setattr(dma, "open_together", lambda pages: (_file(pages), 0x4000_0000))
    told = [0x4000_0000]
    monkeypatch.setattr(hugepages, "physical", lambda address, size: told)
    region = memory.allocate(4096)
    assert region.iova == 0x4000_0000
    told[0] += hugepages.HUGE_PAGE  # the page is somewhere else by now
    with pytest.raises(errors.Error, match="not at its physical address"):
        bare.map(region)
    file.close()
    bare.close_device(function)


def test_memory_of_other_ports_is_refused(function, kernel, memory, monkeypatch):
    monkeypatch.setattr(hugepages, "physical", lambda address, size: [0x1234_0000])
    region = memory.allocate(4096)
    with pytest.raises(errors.Error, match="before all others"):
        open_bare(function)
    assert region.size


def test_what_the_arena_keeps_of_other_ports_is_no_hindrance(function, kernel, memory, monkeypatch):
    arena = Arena(memory)
    monkeypatch.setattr("pyvirtnet.vfio.noiommu.arena", arena)
    arena.take(100)
    bare, file = open_bare(function)
    file.close()
    bare.close_device(function)
    assert list(memory.regions()) == []


def test_whoever_may_not_know_physical_addresses(function, kernel, memory, monkeypatch):
    def refuse(address, size):
        raise PermissionError(errno.EPERM, "kept from this user")

    monkeypatch.setattr(hugepages, "physical", refuse)
    region = memory.allocate(4096)
    with pytest.raises(errors.NoPermission, match="kept from this user"):
        open_bare(function)
    assert region.size


def test_an_ordinary_user_is_told_what_it_takes(function, kernel):
    kernel.errors[NODE] = errno.EPERM
    with pytest.raises(errors.NoPermission, match="CAP_SYS_RAWIO") as caught:
        open_bare(function)
    assert caught.value.mend == "run as root"


class TestOptIn:
    def test_the_ordinary_container_refuses_and_says_how(self, function, kernel):
        with pytest.raises(errors.NoIommu, match="all of this machine's memory") as caught:
            Container().open_device(function)
        assert "open(..., noiommu=True)" in caught.value.mend

    def test_which_container(self, sysfs, function, kernel):
        assert iommu_for(function) is container
        assert iommu_for(function, iommufd=True) is container
        assert iommu_for(function, noiommu=True) is bare_container

    def test_a_function_with_an_iommu_keeps_it(self, sysfs):
        make_sysfs(sysfs)
        assert iommu_for(Function(BDF), noiommu=True) is container
        assert iommu_for(Function(BDF), iommufd=True) is address_space

    def test_without_a_group_node_its_own_file_serves(self, sysfs, tmp_path, monkeypatch):
        path = make_sysfs(sysfs)
        monkeypatch.setattr(iommufd, "NODE", str(tmp_path))
        monkeypatch.setattr(choice, "DEV", str(tmp_path))
        assert iommu_for(Function(BDF)) is container
        (path / "vfio-dev/vfio3").mkdir(parents=True)
        assert iommu_for(Function(BDF)) is address_space
        (tmp_path / "7").touch()
        assert iommu_for(Function(BDF)) is container


def _file(pages):
    fd = os.memfd_create("fake", os.MFD_CLOEXEC)
    os.ftruncate(fd, pages * hugepages.HUGE_PAGE)
    return fd
