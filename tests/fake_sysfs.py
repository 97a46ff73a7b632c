"""A made-up /sys with PCI functions in it."""

BDF = "0000:00:04.0"


def make_sysfs(
    root, bdf=BDF, *, vendor=0x1AF4, device=0x1041, kind=0x020000, driver="vfio-pci", group=7
):
    """A PCI function in a made-up /sys under `root`."""
    path = root / "bus/pci/devices" / bdf
    path.mkdir(parents=True)
    for name, value in (("vendor", vendor), ("device", device), ("class", kind)):
        (path / name).write_text(f"{value:#06x}\n")
    if driver is not None:
        target = root / "bus/pci/drivers" / driver
        target.mkdir(parents=True, exist_ok=True)
        (path / "driver").symlink_to(target)
    if group is not None:
        target = root / "kernel/iommu_groups" / str(group)
        (target / "devices").mkdir(parents=True, exist_ok=True)
        (target / "devices" / bdf).symlink_to(path)
        (path / "iommu_group").symlink_to(target)
    return path
