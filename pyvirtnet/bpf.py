"""Filters by expressions, as tcpdump has them: libpcap compiles, `_bpf` runs them over bursts."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

from ._bpf import Program
from .errors import LibraryMissing

_NAMES = ("libpcap.so.0.8", "libpcap.so.1", "libpcap.so")
_ETHERNET = 1
_MOST = 65535  # bytes of a frame
_ANY_NETMASK = 0xFFFFFFFF


class _Compiled(ctypes.Structure):
    """struct bpf_program."""

    _fields_ = (("count", ctypes.c_uint), ("instructions", ctypes.c_void_p))


class Filter(Program):
    """Which frames of a burst match: `burst[Filter("udp port 53")(burst)]`.

    `expression` is in the language of pcap-filter(7); an empty one matches every frame.
    Raises ValueError for a wrong expression, LibraryMissing where there is no libpcap.
    """

    def __init__(self, expression: str) -> None:
        super().__init__(compiled(expression))
        self.expression = expression

    def __repr__(self) -> str:
        return f"Filter({self.expression!r})"


def compiled(expression: str) -> bytes:
    """The classic BPF program for `expression` on Ethernet frames."""
    if not isinstance(expression, str):
        raise TypeError(f"a filter is a string such as 'udp port 53', not {expression!r}")
    if "\0" in expression:
        raise ValueError(f"{expression!r} is no filter: it has a NUL in it")
    library = _library()
    program = _Compiled()
    handle = library.pcap_open_dead(_ETHERNET, _MOST)
    if not handle:
        raise MemoryError("libpcap has no memory for a handle")
    try:
        text = expression.encode()
        if library.pcap_compile(handle, ctypes.byref(program), text, 1, _ANY_NETMASK):
            why = library.pcap_geterr(handle).decode(errors="replace")
            raise ValueError(f"{expression!r} is no filter: {why}")
        code = ctypes.string_at(program.instructions, 8 * program.count)
        library.pcap_freecode(ctypes.byref(program))
        return code
    finally:
        library.pcap_close(handle)


@cache
def _library() -> Any:
    for name in _NAMES:
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        library.pcap_open_dead.restype = ctypes.c_void_p
        library.pcap_open_dead.argtypes = [ctypes.c_int, ctypes.c_int]
        library.pcap_compile.argtypes = [
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_char_p,
            ctypes.c_int,
            ctypes.c_uint32,
        ]
        library.pcap_geterr.restype = ctypes.c_char_p
        library.pcap_geterr.argtypes = [ctypes.c_void_p]
        library.pcap_freecode.argtypes = [ctypes.c_void_p]
        library.pcap_close.argtypes = [ctypes.c_void_p]
        return library
    raise LibraryMissing(
        "cannot compile a filter",
        "libpcap is not installed",
        "apt-get install libpcap0.8, or leave the filter out",
    )
