"""The kernel's /dev/iommu and the files of VFIO devices, in Python (linux/iommufd.h)."""

import ctypes
import os
import struct

from fake_kernel import fail


class FakeIommufd:
    """What is behind /dev/iommu. `errors` maps an ioctl's number or a path to an errno."""

    def __init__(self):
        self.errors, self.mappings, self.events, self.open_files = {}, {}, [], []
        self.ranges = [(0, 0xFEDF_FFFF), (0xFEF0_0000, 0x7F_FFFF_FFFF)]

    def open(self, path):
        if path in self.errors:
            fail(self.errors[path])
        self.events.append(f"open {path}")
        self.open_files.append(path)
        return _File(self, path)


class _File:
    def __init__(self, kernel, path):
        self.kernel, self.path = kernel, path
        self.fd = 700 if path == "/dev/iommu" else os.open("/dev/null", os.O_RDWR)

    @property
    def closed(self):
        return self.fd < 0

    def close(self):
        if not self.closed:
            self.kernel.open_files.remove(self.path)
            self.kernel.events.append(f"close {self.path}")
            if self.path == "/dev/iommu":
                self.kernel.mappings.clear()
            else:
                os.close(self.fd)
        self.fd = -1

    def ioctl(self, request, argument):
        kernel = self.kernel
        assert not self.closed
        assert (request < 0x3B80) == (self.path != "/dev/iommu")
        if request in kernel.errors:
            fail(kernel.errors[request])
        view = memoryview(argument).cast("B")
        assert struct.unpack_from("<I", view)[0] == len(view), "every structure begins with a size"
        return getattr(self, f"_{request:x}")(view)

    def _3b76(self, view):  # VFIO_DEVICE_BIND_IOMMUFD
        assert struct.unpack_from("<Ii", view, 4) == (0, 700)
        self.kernel.events.append("bind")

    def _3b77(self, view):  # VFIO_DEVICE_ATTACH_IOMMUFD_PT
        assert struct.unpack_from("<II", view, 4) == (0, 5)
        self.kernel.events.append("attach")

    def _3b81(self, view):  # IOMMU_IOAS_ALLOC
        struct.pack_into("<I", view, 8, 5)

    def _3b84(self, view):  # IOMMU_IOAS_IOVA_RANGES
        ioas, room, where = struct.unpack_from("<II4xQ", view, 4)
        assert ioas == 5
        assert room >= len(self.kernel.ranges)
        data = b"".join(struct.pack("<QQ", *pair) for pair in self.kernel.ranges)
        ctypes.memmove(where, data, len(data))
        struct.pack_into("<I", view, 8, len(self.kernel.ranges))
        struct.pack_into("<Q", view, 24, 4096)

    def _3b85(self, view):  # IOMMU_IOAS_MAP
        flags, ioas, address, length, iova = struct.unpack_from("<II4xQQQ", view, 4)
        assert (flags, ioas) == (7, 5)
        assert iova not in self.kernel.mappings
        self.kernel.mappings[iova] = (address, length)

    def _3b86(self, view):  # IOMMU_IOAS_UNMAP
        ioas, iova, length = struct.unpack_from("<IQQ", view, 4)
        assert ioas == 5
        assert self.kernel.mappings.pop(iova)[1] == length
