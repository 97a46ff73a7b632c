"""The container against a made-up kernel: one per process, and all memory visible in it."""

import gc
import os
import shutil
import termios
from pathlib import Path

import pytest
from fake_sysfs import BDF, make_sysfs

from pyvirtnet.vfio.container import Container
from pyvirtnet.vfio.file import File
from pyvirtnet.vfio.function import Function

OTHER = "0000:00:05.0"
NODE = "/dev/vfio/7"

pytest_plugins = ["vfio_fixtures"]


class TestSharing:
    @pytest.mark.rule("RSV-004")
    def test_the_first_group_brings_the_iommu_and_maps_all_memory(self, sysfs, kernel, memory):
        make_sysfs(sysfs)
        region = memory.allocate(1 << 20)
        container = Container()
        file = container.open_device(Function(BDF))
        assert kernel.events == [
            "open /dev/vfio/vfio",
            f"open {NODE}",
            f"set container of {NODE}",
            "iommu 3",
            f"device {BDF}",
        ]
        assert kernel.mappings == {region.iova: (region.address, region.size)}
        file.close()
        container.close_device(Function(BDF))
        assert kernel.events[-2:] == [f"close {NODE}", "close /dev/vfio/vfio"]

    @pytest.mark.rule("RSV-004")
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

    def test_a_function_that_sysfs_loses_while_it_is_let_go(self, sysfs, kernel, monkeypatch):
        """Unplugged: the kernel takes its links away between two looks at them."""
        make_sysfs(sysfs)
        container = Container()
        container.open_device(Function(BDF)).close()
        shutil.rmtree(sysfs / "bus/pci/devices" / BDF)
        monkeypatch.setattr(Path, "exists", lambda path: True)  # a moment ago
        assert Function(BDF).group is None
        assert Function(BDF).driver is None
        container.close_device(Function(BDF))
        assert kernel.open_files == []

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
