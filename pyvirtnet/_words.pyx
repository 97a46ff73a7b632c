"""16-bit words that a device reads and writes too, and its doorbells, from plain Python."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t

from ._barrier cimport eventfd_add, full_fence, mmio_store16, mmio_store32, observe, publish


cdef int _check(const uint8_t[::1] memory, Py_ssize_t offset) except -1:
    if offset < 0 or offset & 1 or offset + 2 > memory.shape[0]:
        raise IndexError(f"there is no word at {offset} of {memory.shape[0]} bytes")
    return 0


def load(const uint8_t[::1] memory not None, Py_ssize_t offset):
    """The word at `offset`; what the device wrote before it is visible from now on."""
    _check(memory, offset)
    return observe(<const uint16_t *>&memory[offset])


def store(uint8_t[::1] memory not None, Py_ssize_t offset, uint16_t value):
    """Write a word: what was written before is visible first, what is read next comes after.

    That is the order of 2.7.13.3 and of 2.7.13.4.1: buffers, then their index, then the device's
    wish for kicks.
    """
    _check(memory, offset)
    publish(<uint16_t *>&memory[offset], value)
    full_fence()  # pairs with the device's, between its wish for kicks and a look at the index


def ring(doorbell, uint16_t position):
    """Notify the device; with NOTIFICATION_DATA, of where we are in the ring (2.9)."""
    cdef uint32_t value = doorbell.value
    if doorbell.with_data:
        value |= <uint32_t>position << 16
    if doorbell.kind == "call":
        doorbell.target(value)
    elif doorbell.kind == "eventfd":
        eventfd_add(doorbell.target)
    elif doorbell.with_data:
        mmio_store32(doorbell.target, value)
    else:
        mmio_store16(doorbell.target, <uint16_t>value)
