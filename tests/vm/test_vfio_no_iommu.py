"""VFIO on a machine without an IOMMU: the error says so before anything is touched."""

import pytest

from pyvirtnet import errors
from pyvirtnet.transport.vfio_pci import VfioPciTransport

MACHINE = {"ports": 2, "iommu": "none"}


def test_no_iommu_names_the_kernels_and_qemus_settings():
    with pytest.raises(errors.NoIommu) as caught:
        VfioPciTransport("0000:00:04.0")
    assert "kernel runs without an IOMMU" in caught.value.why
    assert "intel_iommu=on" in caught.value.mend
    assert "-device intel-iommu,intremap=on" in caught.value.mend
