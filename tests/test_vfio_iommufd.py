"""/dev/iommu against a made-up kernel: one address space, and all memory visible in it."""

import errno
import gc

import pytest
from fake_iommufd import FakeIommufd
from fake_sysfs import BDF, make_sysfs

from pyvirtnet import dma, errors
from pyvirtnet.vfio import iommufd, problems
from pyvirtnet.vfio.file import File
from pyvirtnet.vfio.function import Function
from pyvirtnet.vfio.iommufd import AddressSpace

OTHER = "0000:00:05.0"
NODE = "/dev/vfio/devices/vfio3"

pytest_plugins = ["vfio_fixtures"]


@pytest.fixture
def memory(monkeypatch):
    own = dma.Memory()
    monkeypatch.setattr(iommufd, "memory", own)
    return own


@pytest.fixture
def kernel(sysfs, memory, monkeypatch, tmp_path):
    made = FakeIommufd()
    there = tmp_path / "iommu"
    there.touch()
    monkeypatch.setattr(iommufd, "NODE", str(there))
    monkeypatch.setattr(
        File, "open", lambda path: made.open("/dev/iommu" if path == str(there) else path)
    )
    for number, bdf in ((3, BDF), (4, OTHER)):
        path = make_sysfs(sysfs, bdf, group=number)
        (path / f"vfio-dev/vfio{number}").mkdir(parents=True)
    yield made
    assert made.open_files == []


def close(space, file, bdf=BDF):
    file.close()
    space.close_device(Function(bdf))


def test_the_first_device_brings_the_memory(kernel, memory):
    region = memory.allocate(1 << 20)
    space = AddressSpace()
    file = space.open_device(Function(BDF))
    assert kernel.events == ["open /dev/iommu", f"open {NODE}", "bind", "attach"]
    assert kernel.mappings == {region.iova: (region.address, region.size)}
    late = memory.allocate(4096)
    assert sorted(kernel.mappings) == [region.iova, late.iova]
    del late
    gc.collect()
    assert sorted(kernel.mappings) == [region.iova]
    close(space, file)
    assert kernel.events[-2:] == [f"close {NODE}", "close /dev/iommu"]
    del region
    gc.collect()  # reaches nothing: the fake kernel would object


def test_a_second_device_joins_the_same_space(kernel, memory):
    space = AddressSpace()
    files = [space.open_device(Function(bdf)) for bdf in (BDF, OTHER)]
    assert kernel.events.count("open /dev/iommu") == 1
    close(space, files[0])
    assert "close /dev/iommu" not in kernel.events
    close(space, files[1], OTHER)


def test_busy_here(kernel):
    space = AddressSpace()
    file = space.open_device(Function(BDF))
    with pytest.raises(errors.DeviceBusy, match="has it open already"):
        space.open_device(Function(BDF))
    close(space, file)


@pytest.mark.parametrize(
    ("where", "number", "expected"),
    [
        (iommufd.BIND, errno.EPERM, (errors.NoIommu, "iommufd/parameters/allow_unsafe")),
        (iommufd.IOAS_ALLOC, errno.ENOSPC, (errors.NoIommu, "No space left")),
        (iommufd.ATTACH, errno.EINVAL, (errors.NoIommu, "can't put its group")),
        (NODE, errno.EBUSY, (errors.DeviceBusy, NODE)),
        (NODE, errno.EACCES, (errors.NoPermission, "--user")),
        ("/dev/iommu", errno.EACCES, (errors.NoPermission, "chmod 666")),
        (iommufd.IOAS_MAP, errno.ENOMEM, (errors.OutOfMemory, "Cannot allocate memory")),
    ],
)
def test_refusals_are_typed_and_leave_nothing_open(kernel, memory, where, number, expected):
    region = memory.allocate(4096)
    kernel.errors[where] = number
    with pytest.raises(expected[0], match=expected[1]):
        AddressSpace().open_device(Function(BDF))
    assert kernel.open_files == []
    assert region.size


@pytest.mark.usefixtures("memory")
@pytest.mark.parametrize("number", [errno.EINVAL, errno.EBUSY])
@pytest.mark.parametrize("node", [NODE, "/dev/vfio/3"])
def test_busy_in_another_process(kernel, tmp_path, monkeypatch, number, node):
    """The device's own node opens a second time; it is binding it that fails."""
    kernel.errors[iommufd.BIND] = number
    process = tmp_path / "proc/4711"
    (process / "fd").mkdir(parents=True)
    (process / "fd/9").symlink_to(node)
    (process / "comm").write_text("dpdk-testpmd\n")
    monkeypatch.setattr(problems, "PROC", tmp_path / "proc")
    with pytest.raises(errors.DeviceBusy, match=f"{node} is held by dpdk-testpmd .pid 4711."):
        AddressSpace().open_device(Function(BDF))
    assert kernel.open_files == []


def test_a_group_is_not_viable_only_where_a_kernel_driver_is_in_it(kernel, memory, sysfs):
    make_sysfs(sysfs, "0000:00:06.0", driver="vfio-pci", group=3)
    kernel.errors[iommufd.BIND] = errno.EINVAL
    with pytest.raises(errors.NoIommu, match="Invalid argument"):
        AddressSpace().open_device(Function(BDF))
    make_sysfs(sysfs, "0000:00:07.0", driver="e1000", group=3)
    with pytest.raises(errors.GroupNotViable, match=r"07\.0 .e1000") as caught:
        AddressSpace().open_device(Function(BDF))
    assert "06.0" not in str(caught.value)


def test_a_kernel_without_it_is_named(kernel, sysfs):
    (sysfs / "bus/pci/devices" / BDF / "vfio-dev/vfio3").rmdir()
    with pytest.raises(errors.NoIommu, match="CONFIG_VFIO_DEVICE_CDEV"):
        AddressSpace().open_device(Function(BDF))


def test_memory_outside_the_iommus_range_is_refused(kernel, memory):
    region = memory.allocate(4096)
    kernel.ranges = [(0, 0xFFFF_FFFF)]
    with pytest.raises(errors.OutOfMemory, match="translates only"):
        AddressSpace().open_device(Function(BDF))
    assert region.size


def test_abandon_closes_its_files_without_an_ioctl(kernel, memory):
    region = memory.allocate(4096)
    space = AddressSpace()
    file = space.open_device(Function(BDF))
    events = len(kernel.events)
    space.abandon()
    file.close()
    assert kernel.events[events:] == ["close /dev/iommu", f"close {NODE}"]
    del region
    gc.collect()
