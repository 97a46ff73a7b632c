"""VFIO: how Linux hands a PCI function to this process."""
