"""Why VFIO refuses: every refusal of a made-up kernel, with its cause and its mend."""

import errno
import os
import resource

import pytest
from fake_sysfs import BDF, make_sysfs
from vfio_fixtures import open_port

from pyvirtnet import errors
from pyvirtnet.vfio import problems, uapi
from pyvirtnet.vfio.container import Container
from pyvirtnet.vfio.function import Function, find, normalise

NODE = "/dev/vfio/7"

pytest_plugins = ["vfio_fixtures"]


def open_failing(function=BDF):
    """The error of opening `function`, after which nothing may be open."""
    with pytest.raises(errors.Error) as caught:
        Container().open_device(Function(function))
    return caught.value


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

    @pytest.mark.parametrize("node", [NODE, "/dev/vfio/vfio"])
    @pytest.mark.parametrize(
        ("number", "mend"), [(errno.EMFILE, "ulimit -n"), (errno.ENOMEM, "dmesg")]
    )
    def test_a_node_that_is_there_and_cannot_be_opened(self, sysfs, kernel, node, number, mend):
        """It was said to be busy, or VFIO not to be loaded."""
        make_sysfs(sysfs)
        kernel.errors[node] = number
        error = open_failing()
        assert type(error) is errors.Error
        assert error.what == f"cannot open {node}"
        assert error.why == os.strerror(number)
        assert mend in error.mend

    def test_a_container_that_answers_nothing_is_closed(self, sysfs, kernel):
        make_sysfs(sysfs)
        kernel.errors[0x3B64] = errno.EMFILE
        assert "ulimit -n" in open_failing().mend

    @pytest.mark.parametrize("request_number", [0x3B66, 0x3B68])
    def test_too_few_descriptors_are_no_lack_of_an_iommu(self, sysfs, kernel, request_number):
        make_sysfs(sysfs)
        kernel.errors[request_number] = errno.EMFILE
        assert "ulimit -n" in open_failing().mend

    def test_a_region_that_is_not_told(self, fake, sysfs, monkeypatch):
        """EINVAL alone says that there is none."""
        make_sysfs(sysfs)

        def refuse(view):
            raise OSError(errno.ENOMEM, "Cannot allocate memory")

        monkeypatch.setattr(fake, "_region_info", refuse)
        with pytest.raises(errors.Error, match="Cannot allocate memory"):
            open_port(fake)

    def test_root_whose_container_lacks_the_node(self, sysfs, kernel):
        make_sysfs(sysfs)
        for node in (NODE, "/dev/vfio/vfio"):
            kernel.errors[node] = errno.EPERM
            error = open_failing()
            assert isinstance(error, errors.NoPermission)
            assert f"docker run --device {node}" in error.mend

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

    def test_the_name_of_a_holder_that_the_kernel_has_cut(self, tmp_path, monkeypatch):
        """After 15 bytes, in the middle of a letter or not."""
        (tmp_path / "4711/fd").mkdir(parents=True)
        (tmp_path / "4711/comm").write_bytes("tesüberwachunü".encode()[:15] + b"\n")
        (tmp_path / "4711/fd/3").symlink_to(NODE)
        monkeypatch.setattr(problems, "PROC", tmp_path)
        assert problems.holders(NODE) == [(4711, "tesüberwachun\ufffd")]

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

    @pytest.mark.parametrize(
        ("number", "mend"), [(errno.EMFILE, "ulimit -n"), (errno.EIO, "dmesg")]
    )
    def test_a_device_that_cannot_be_had(self, sysfs, kernel, number, mend):
        """It was said to have another driver: vfio-pci."""
        make_sysfs(sysfs)
        kernel.errors[uapi.GROUP_GET_DEVICE_FD] = number
        error = open_failing()
        assert type(error) is errors.Error
        assert error.why == os.strerror(number)
        assert mend in error.mend

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

    @pytest.mark.parametrize("taken", ["VmPin:\t 7168 kB\nVmLck:\t 0 kB", "VmPin:\t 0 kB"])
    def test_iommufd_counts_otherwise(self, limited, tmp_path, taken):
        """As pinned, and what all processes of the user have together."""
        (tmp_path / "proc/self/status").write_text(f"{taken}\nCapEff:\t0000000000000000\n")
        refused = OSError(errno.ENOMEM, "Cannot allocate memory")
        error = problems.mapping(2 << 20, refused, by_user=True)
        assert isinstance(error, errors.MemlockLimit)
        assert "all processes of this user together" in error.why
        assert f"ulimit -l {10 << 10}" in error.mend

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


class TestNames:
    @pytest.mark.parametrize(
        ("name", "bdf"),
        [
            ("00:04.0", "0000:00:04.0"),
            ("0000:00:04.0", "0000:00:04.0"),
            ("0000:0A:1F.7", "0000:0a:1f.7"),
            ("10000:00:04.0", "10000:00:04.0"),
            ("eth0", None),
            ("00:04", None),
            ("00:24.0", None),
            ("00:04.8", None),
            ("", None),
        ],
    )
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
