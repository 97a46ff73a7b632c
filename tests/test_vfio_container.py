"""The container against a made-up kernel: one per process, and every refusal explained."""

import errno
import gc
import os
import resource
import termios

import pytest
from fake_kernel import FakeKernel
from fake_vfio import BDF, make_sysfs

from pyvirtnet import dma, errors
from pyvirtnet.vfio import problems
from pyvirtnet.vfio.container import Container
from pyvirtnet.vfio.file import File
from pyvirtnet.vfio.function import Function, find, normalise

OTHER = "0000:00:05.0"
NODE = "/dev/vfio/7"


@pytest.fixture(autouse=True)
def sysfs(tmp_path, monkeypatch):
    monkeypatch.setattr("pyvirtnet.vfio.function.SYS", tmp_path)
    monkeypatch.setattr("pyvirtnet.vfio.problems.SYS", tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def memory(monkeypatch):
    """DMA memory of the test's own."""
    own = dma.Memory()
    monkeypatch.setattr("pyvirtnet.vfio.container.memory", own)
    return own


@pytest.fixture
def kernel(monkeypatch):
    made = FakeKernel()
    monkeypatch.setattr(File, "open", made.open)
    yield made
    assert made.open_files == []


def open_failing(function=BDF):
    """The error of opening `function`, after which nothing may be open."""
    with pytest.raises(errors.Error) as caught:
        Container().open_device(Function(function))
    return caught.value


class TestSharing:
    def test_the_first_group_brings_the_iommu_and_maps_all_memory(self, sysfs, kernel, memory):
        make_sysfs(sysfs)
        region = memory.allocate(1 << 20)
        container = Container()
        file = container.open_device(Function(BDF))
        assert kernel.events == [
            "open /dev/vfio/vfio", f"open {NODE}", f"set container of {NODE}", "iommu 3",
            f"device {BDF}",
        ]
        assert kernel.mappings == {region.iova: (region.address, region.size)}
        file.close()
        container.close_device(Function(BDF))
        assert kernel.events[-2:] == [f"close {NODE}", "close /dev/vfio/vfio"]

    def test_memory_that_comes_and_goes_later(self, sysfs, kernel, memory):
        make_sysfs(sysfs)
        container = Container()
        file = container.open_device(Function(BDF))
        region = memory.allocate(1 << 20)
        assert list(kernel.mappings) == [region.iova]
        del region
        gc.collect()
        assert kernel.mappings == {}
        file.close()
        container.close_device(Function(BDF))

    def test_a_second_group_joins_the_same_container(self, sysfs, kernel, memory):
        make_sysfs(sysfs)
        make_sysfs(sysfs, OTHER, group=8)
        region = memory.allocate(1 << 20)
        container = Container()
        for bdf in (BDF, OTHER):
            container.open_device(Function(bdf)).close()
        assert kernel.open_files == ["/dev/vfio/vfio", NODE, "/dev/vfio/8"]
        assert kernel.events.count("iommu 3") == 1
        assert list(kernel.mappings) == [region.iova]
        container.close_device(Function(BDF))
        assert kernel.open_files == ["/dev/vfio/vfio", "/dev/vfio/8"]
        container.close_device(Function(OTHER))

    def test_two_functions_of_one_group_open_its_node_once(self, sysfs, kernel):
        make_sysfs(sysfs)
        make_sysfs(sysfs, OTHER)
        container = Container()
        for bdf in (BDF, OTHER):
            container.open_device(Function(bdf)).close()
        assert kernel.open_files == ["/dev/vfio/vfio", NODE]
        container.close_device(Function(BDF))
        assert kernel.open_files == ["/dev/vfio/vfio", NODE]
        container.close_device(Function(OTHER))

    def test_it_opens_again_after_the_last_has_left(self, sysfs, kernel):
        make_sysfs(sysfs)
        container = Container()
        for _ in range(2):
            container.open_device(Function(BDF)).close()
            container.close_device(Function(BDF))
        assert kernel.events.count("open /dev/vfio/vfio") == 2

    def test_memory_outlives_the_container(self, sysfs, kernel, memory):
        make_sysfs(sysfs)
        container = Container()
        container.open_device(Function(BDF)).close()
        region = memory.allocate(4096)
        container.close_device(Function(BDF))
        del region
        gc.collect()  # neither this nor the next reaches the closed container:
        memory.allocate(4096)  # the fake kernel would object

    def test_abandon_closes_files_without_an_ioctl(self, sysfs, kernel, memory, monkeypatch):
        make_sysfs(sysfs)
        container = Container()
        container.open_device(Function(BDF)).close()
        region = memory.allocate(4096)
        mapped = dict(kernel.mappings)
        monkeypatch.setattr("fake_kernel.FakeFile.ioctl", None)
        container.abandon()
        assert mapped
        assert kernel.open_files == []
        del region
        gc.collect()
        memory.allocate(4096)

    def test_type1_serves_where_v2_is_missing(self, sysfs, kernel):
        make_sysfs(sysfs)
        kernel.kinds = {1}
        container = Container()
        container.open_device(Function(BDF)).close()
        assert "iommu 1" in kernel.events
        container.close_device(Function(BDF))


class TestRefusals:
    def test_no_iommu_group(self, sysfs, kernel):
        make_sysfs(sysfs, group=None)
        error = open_failing()
        assert isinstance(error, errors.NoIommu)
        assert "kernel runs without an IOMMU" in error.why
        assert "intel_iommu=on" in error.mend
        assert "-device intel-iommu,intremap=on" in error.mend

    def test_noiommu_group(self, sysfs, kernel):
        make_sysfs(sysfs)
        (sysfs / "kernel/iommu_groups/7/name").write_text("vfio-noiommu\n")
        assert isinstance(open_failing(), errors.NoIommu)

    @pytest.mark.parametrize("request_number", [0x3B66, 0x3B68])
    def test_no_interrupt_remapping(self, sysfs, kernel, request_number):
        make_sysfs(sysfs)
        kernel.errors[request_number] = errno.EPERM
        error = open_failing()
        assert isinstance(error, errors.NoIommu)
        assert "intremap=on" in error.mend
        assert "allow_unsafe_interrupts" in error.mend

    def test_no_type1_driver(self, sysfs, kernel):
        make_sysfs(sysfs)
        kernel.kinds = set()
        error = open_failing()
        assert isinstance(error, errors.NoIommu)
        assert error.mend == "modprobe vfio_iommu_type1"

    def test_another_api_version(self, sysfs, kernel):
        make_sysfs(sysfs)
        kernel.version = 1
        assert "version 1" in open_failing().why

    @pytest.mark.parametrize("driver", ["virtio-pci", None])
    def test_not_bound(self, sysfs, kernel, driver):
        make_sysfs(sysfs, driver=driver)
        error = open_failing()
        assert isinstance(error, errors.NotBound)
        assert (driver or "no driver") in error.why
        assert error.mend == f"tools/bind {BDF}"

    def test_vfio_not_loaded(self, sysfs, kernel):
        make_sysfs(sysfs)
        kernel.errors["/dev/vfio/vfio"] = errno.ENODEV
        error = open_failing()
        assert isinstance(error, errors.NotBound)
        assert error.mend == "modprobe vfio-pci"

    def test_group_not_viable_names_the_others_and_not_the_bridges(self, sysfs, kernel):
        make_sysfs(sysfs)
        make_sysfs(sysfs, "0000:00:06.0", driver="e1000")
        make_sysfs(sysfs, "0000:00:07.0", driver="pcieport", kind=0x060400)
        make_sysfs(sysfs, "0000:00:08.0", driver=None)
        kernel.viable = False
        error = open_failing()
        assert isinstance(error, errors.GroupNotViable)
        assert "0000:00:06.0 (e1000)" in error.why
        assert "00:07.0" not in str(error)
        assert "00:08.0" not in str(error)
        assert error.mend == "tools/bind 0000:00:06.0"

    def test_busy_in_this_process(self, sysfs, kernel):
        make_sysfs(sysfs)
        container = Container()
        container.open_device(Function(BDF)).close()
        with pytest.raises(errors.DeviceBusy, match="this process"):
            container.open_device(Function(BDF))
        container.close_device(Function(BDF))

    def test_busy_in_another_process(self, sysfs, kernel, tmp_path, monkeypatch):
        make_sysfs(sysfs)
        kernel.errors[NODE] = errno.EBUSY
        process = tmp_path / "proc/4711"
        (process / "fd").mkdir(parents=True)
        (process / "fd/9").symlink_to(NODE)
        (process / "comm").write_text("dpdk-testpmd\n")
        monkeypatch.setattr(problems, "PROC", tmp_path / "proc")
        error = open_failing()
        assert isinstance(error, errors.DeviceBusy)
        assert "dpdk-testpmd (pid 4711)" in error.why
        assert error.mend.endswith("kill 4711")

    def test_busy_because_this_process_has_the_node(self, sysfs, kernel, tmp_path, monkeypatch):
        make_sysfs(sysfs)
        kernel.errors[NODE] = errno.EBUSY
        folder = tmp_path / "proc" / str(os.getpid()) / "fd"
        folder.mkdir(parents=True)
        (folder / "9").symlink_to(NODE)
        (folder.parent / "comm").write_text("pytest\n")
        monkeypatch.setattr(problems, "PROC", tmp_path / "proc")
        assert "this process" in open_failing().why

    def test_busy_and_nobody_to_be_seen(self, sysfs, kernel, tmp_path, monkeypatch):
        make_sysfs(sysfs)
        kernel.errors[NODE] = errno.EBUSY
        (tmp_path / "proc").mkdir()
        monkeypatch.setattr(problems, "PROC", tmp_path / "proc")
        assert f"fuser -v {NODE}" in open_failing().mend

    def test_no_permission(self, sysfs, kernel):
        make_sysfs(sysfs)
        kernel.errors[NODE] = errno.EACCES
        error = open_failing()
        assert isinstance(error, errors.NoPermission)
        assert f"tools/bind {BDF} --user" in error.mend

    def test_a_device_that_the_group_does_not_give(self, sysfs, kernel):
        make_sysfs(sysfs)
        kernel.errors[0x3B6A] = errno.ENODEV
        assert isinstance(open_failing(), errors.NotBound)


class TestMapping:
    @pytest.fixture(autouse=True)
    def function(self, sysfs):
        make_sysfs(sysfs)

    @pytest.fixture
    def limited(self, tmp_path, monkeypatch):
        """A user without CAP_IPC_LOCK whose limit is 8 MiB, 7 of them taken."""
        (tmp_path / "proc/self").mkdir(parents=True)
        text = "Name:\tpython\nVmLck:\t    7168 kB\nCapEff:\t0000000000000000\n"
        (tmp_path / "proc/self/status").write_text(text)
        monkeypatch.setattr(problems, "PROC", tmp_path / "proc")
        monkeypatch.setattr(resource, "getrlimit", lambda kind: (8 << 20, 8 << 20))

    def test_memlock_tells_needed_and_allowed(self, kernel, memory, limited):
        kernel.errors[0x3B71] = errno.ENOMEM
        region = memory.allocate(2 << 20)
        error = open_failing()
        assert isinstance(error, errors.MemlockLimit)
        needed = (7168 << 10) + region.size >> 10
        assert "allows 8192 KiB" in error.why
        assert f"{needed} KiB are needed" in error.why
        assert f"ulimit -l {needed}" in error.mend

    def test_no_memory_though_the_limit_would_do(self, limited):
        error = problems.mapping(4096, OSError(errno.ENOMEM, "Cannot allocate memory"))
        assert isinstance(error, errors.OutOfMemory)

    def test_a_privileged_process_has_no_memlock_limit(self, limited, tmp_path):
        status = tmp_path / "proc/self/status"
        status.write_text(status.read_text().replace("0000000000000000", "0000000000004000"))
        error = problems.mapping(2 << 20, OSError(errno.ENOMEM, "Cannot allocate memory"))
        assert isinstance(error, errors.OutOfMemory)

    def test_memory_above_the_iommus_addresses(self, kernel, memory):
        kernel.ranges = [(0, 0xFFFF_FFFF)]
        region = memory.allocate(4096)
        error = open_failing()
        assert isinstance(error, errors.OutOfMemory)
        assert f"{region.iova:#x}" in error.what
        assert "aw-bits" in error.mend

    def test_pages_too_small_for_the_iommu(self, kernel, memory):
        kernel.page_sizes = 1 << 30
        region = memory.allocate(4096)
        assert f"{region.iova:#x}" in open_failing().what

    def test_too_many_mappings(self, kernel, memory):
        kernel.avail = 1
        first, second = memory.allocate(4096), memory.allocate(4096)
        error = open_failing()
        assert first.iova != second.iova
        assert "dma_entry_limit" in error.mend


class TestFile:
    def test_an_ioctl_gives_its_result_whatever_its_argument_is(self):
        reader, writer = os.pipe()
        os.write(writer, b"12345")
        answer = bytearray(4)
        file = File(reader)
        assert file.ioctl(termios.FIONREAD, answer) == 0
        assert answer == (5).to_bytes(4, "little")
        assert file.ioctl(termios.FIONREAD, bytes(4)) == 0
        file.close()
        file.close()
        assert file.closed
        os.close(writer)


class TestNames:
    @pytest.mark.parametrize(("name", "bdf"), [
        ("00:04.0", "0000:00:04.0"), ("0000:00:04.0", "0000:00:04.0"),
        ("0000:0A:1F.7", "0000:0a:1f.7"), ("10000:00:04.0", "10000:00:04.0"),
        ("eth0", None), ("00:04", None), ("00:24.0", None), ("00:04.8", None), ("", None),
    ])
    def test_normalise(self, name, bdf):
        assert normalise(name) == bdf

    def test_found_by_short_name(self, sysfs):
        make_sysfs(sysfs)
        assert find("00:04.0") == Function(BDF)

    @pytest.mark.parametrize("name", ["00:09.0", "nothing", "", "../etc"])
    def test_no_such_device(self, sysfs, name):
        with pytest.raises(errors.NoSuchDevice) as caught:
            find(name)
        assert "tools/bind status" in caught.value.mend

    def test_an_interface_says_how_to_bind_it(self, sysfs):
        path = make_sysfs(sysfs, driver="virtio-pci")
        (path / "virtio0/net/enp0s4").mkdir(parents=True)
        interface = sysfs / "class/net/enp0s4"
        interface.mkdir(parents=True)
        (interface / "device").symlink_to(path / "virtio0")
        with pytest.raises(errors.NotBound) as caught:
            find("enp0s4")
        assert caught.value.mend == f"tools/bind {BDF}, then open '{BDF}'"
