"""The kernel's VFIO container and groups, in Python: behaves as type 1 does, or as told to fail."""

import os
import struct


def fail(number):
    raise OSError(number, os.strerror(number))


class FakeKernel:
    """What is behind /dev/vfio. `errors` maps an ioctl's number or a path to an errno."""

    def __init__(self):
        self.errors = {}
        self.version = 0
        self.kinds = {1, 3}
        self.viable = True
        self.page_sizes = 0xFFFF_FFFF_FFFF_F000
        self.ranges = [(0, 0xFEDF_FFFF), (0xFEF0_0000, 0x7F_FFFF_FFFF)]
        self.avail = 65535
        self.mappings = {}
        self.events = []
        self.open_files = []

    def open(self, path):
        if path in self.errors:
            fail(self.errors[path])
        self.events.append(f"open {path}")
        file = FakeFile(self, path)
        self.open_files.append(path)
        return file


class FakeFile:
    """A container or group file; a group's device file is a real descriptor of /dev/null."""

    def __init__(self, kernel, path):
        self.kernel, self.path = kernel, path
        self.fd = 500 + len(kernel.events)
        self.container = None

    @property
    def closed(self):
        return self.fd < 0

    def close(self):
        if not self.closed:
            self.kernel.events.append(f"close {self.path}")
            self.kernel.open_files.remove(self.path)
            if self.path.endswith("/vfio"):
                self.kernel.mappings.clear()
        self.fd = -1

    def ioctl(self, request, argument=0):
        kernel = self.kernel
        assert not self.closed, f"ioctl {request:#x} on closed {self.path}"
        if request in kernel.errors:
            fail(kernel.errors[request])
        group = not self.path.endswith("/vfio")
        assert group == (0x3B67 <= request <= 0x3B6A)
        return getattr(self, f"_{request:x}")(argument)

    def _3b64(self, _):  # GET_API_VERSION
        return self.kernel.version

    def _3b65(self, kind):  # CHECK_EXTENSION
        return int(kind in self.kernel.kinds)

    def _3b66(self, kind):  # SET_IOMMU
        self.kernel.events.append(f"iommu {kind}")
        return 0

    def _3b67(self, status):  # GROUP_GET_STATUS
        struct.pack_into("<II", status, 0, 8, int(self.kernel.viable))
        return 0

    def _3b68(self, container):  # GROUP_SET_CONTAINER
        (self.container,) = struct.unpack("<i", container)
        self.kernel.events.append(f"set container of {self.path}")
        return 0

    def _3b6a(self, name):  # GROUP_GET_DEVICE_FD
        assert name.endswith(b"\0")
        self.kernel.events.append(f"device {name[:-1].decode()}")
        return os.open("/dev/null", os.O_RDWR)

    def _3b70(self, info):  # IOMMU_GET_INFO
        ranges = b"".join(struct.pack("<QQ", *pair) for pair in self.kernel.ranges)
        head = struct.pack("<HHIII", 1, 1, 24 + 16 + len(ranges), len(self.kernel.ranges), 0)
        chain = head + ranges + struct.pack("<HHII", 3, 1, 0, self.kernel.avail)
        room = len(info)
        struct.pack_into("<IIQI", info, 0, 24 + len(chain), 3, self.kernel.page_sizes, 0)
        if room >= 24 + len(chain):
            struct.pack_into("<I", info, 16, 24)
            info[24 : 24 + len(chain)] = chain
        return 0

    def _3b71(self, request):  # IOMMU_MAP_DMA
        size, flags, address, iova, length = struct.unpack("<IIQQQ", bytes(request))
        assert (size, flags) == (32, 3)
        assert iova not in self.kernel.mappings
        self.kernel.mappings[iova] = (address, length)
        return 0

    def _3b72(self, request):  # IOMMU_UNMAP_DMA
        size, flags, iova, length = struct.unpack("<IIQQ", bytes(request))
        assert (size, flags) == (24, 0)
        assert self.kernel.mappings.pop(iova)[1] == length
        return 0
