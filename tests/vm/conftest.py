"""Where the tests of this folder run: in a guest. On the host each is replayed from there.

A module says what its guest must look like: MACHINE = {"ports": 2, "link": "hub", "iommu": "intel",
"port_opts": "", "queues": 1, "memory": 1536, "cpus": 2, "hotplug": False, "image": "debian12",
"timeout": 900}; left
out is the default.
Modules with equal MACHINE share one boot.
"""

from pathlib import Path

if Path("/etc/pyvirtnet-guest").exists():
    from .reporter import pytest_runtest_logreport  # noqa: F401
else:
    from .remote import (  # noqa: F401
        pytest_collection_modifyitems,
        pytest_configure,
        pytest_runtest_protocol,
        pytest_sessionfinish,
    )
