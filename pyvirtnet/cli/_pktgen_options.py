"""pktgen's words on the command line: sizes and mixes, rates, fields that vary."""

from __future__ import annotations

import argparse
import ipaddress
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from math import lcm

from .._probe import PROBE_BYTES
from ..spec import MAX_FRAME
from ._command import WrongUsage, mac, number

ETHERNET = 14
MIN_PROBE = ETHERNET + PROBE_BYTES
RFC2544 = (60, 124, 252, 508, 1020, 1276, 1514)  # 64 to 1518, less the frame check sequence
IMIX = ((60, 7), (590, 4), (1514, 1))
ON_THE_WIRE = 24  # bytes beside a frame's: preamble 8, check sequence 4, gap 12
MAX_VALUES = 1 << 16
_SCALE = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}
_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmg]?)(pps|bps|bit/s|%|)", re.IGNORECASE)


@dataclass(frozen=True)
class Mix:
    """Sizes that frames have in turn."""

    label: str
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, size: int) -> Mix:
        return cls(str(size), (size,))

    @property
    def mean(self) -> float:
        return sum(self.sizes) / len(self.sizes)


def mixed(label: str, parts: list[tuple[int, int]]) -> Mix:
    """Sizes by their weights, spread evenly."""
    total = sum(weight for _, weight in parts)
    turns = sorted(
        ((i + 0.5) * total / weight, size) for size, weight in parts for i in range(weight)
    )
    return Mix(label, tuple(size for _, size in turns))


_size = number(MIN_PROBE, MAX_FRAME)


def sizes(text: str) -> list[Mix]:
    """60,128-1514:256,rfc2544,imix, or a mix of one's own, 60*7+590*4."""
    found: list[Mix] = []
    for part in text.split(","):
        word = part.strip()
        if word == "imix":
            found.append(mixed("imix", list(IMIX)))
        elif word == "rfc2544":
            found += map(Mix.of, RFC2544)
        elif "*" in word:
            pairs = [piece.partition("*") for piece in word.split("+")]
            weights = [(_size(size), number(1, 1000)(weight)) for size, _, weight in pairs]
            found.append(mixed(word, weights))
        elif "-" in word:
            ends, _, step = word.partition(":")
            low, _, high = ends.partition("-")
            found += map(Mix.of, range(_size(low), _size(high) + 1, number(1, 65535)(step or "1")))
        else:
            found.append(Mix.of(_size(word)))
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} names no size")
    return found


@dataclass(frozen=True)
class Rate:
    """How fast: frames a second, bits of frames a second, or a share of the line's rate."""

    text: str
    value: float
    unit: str

    def pps(self, size: float, line: float | None) -> float:
        """For frames of this size; `line` in bits a second, where a share needs it."""
        if self.unit == "pps":
            return self.value
        if self.unit == "bps":
            return self.value / (size * 8)
        if line is None:
            why = "the port does not say how fast its line is"
            raise WrongUsage(f"cannot send at {self.text}", why, "name it: --line 10G")
        return self.value / 100 * line / ((size + ON_THE_WIRE) * 8)


def rate(text: str) -> Rate | None:
    """1M or 1Mpps, 2.5Gbps, 10%; None for max."""
    if text == "max":
        return None
    match = _RATE.fullmatch(text.strip())
    unit = match[3].lower().replace("bit/s", "bps") or "pps" if match else ""
    value = float(match[1]) * _SCALE[match[2].lower()] if match else 0.0
    if unit == "%" and value > 100:
        raise argparse.ArgumentTypeError(f"{text!r} is more than the line carries: 100% at most")
    if not value:
        raise argparse.ArgumentTypeError(f"{text!r} is no rate such as 100kpps, 1.5Gbps, 10%, max")
    return Rate(text, value, unit)


def rates(text: str) -> list[Rate | None]:
    return [rate(part) for part in text.split(",")]


def line(text: str) -> float:
    """Bits a second: 10G."""
    found = rate(text)
    if found is None or found.unit == "%":
        raise argparse.ArgumentTypeError(f"{text!r} is no line rate such as 10G")
    return found.value


# ---- fields that vary --------------------------------------------------------------------------


@dataclass(frozen=True)
class Vary:
    """A field and its values, of which each frame takes the next."""

    field: str
    values: tuple[bytes, ...]


def _whole(low: int, high: int, width: int) -> Callable[[str], bytes]:
    convert = number(low, high)
    return lambda text: convert(text).to_bytes(width, "big")


def _address(text: str) -> bytes:
    try:
        return ipaddress.ip_address(text).packed
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


FIELDS: dict[str, Callable[[str], bytes]] = {
    "src-mac": mac,
    "dst-mac": mac,
    "vlan": _whole(0, 4095, 2),
    "src-ip": _address,
    "dst-ip": _address,
    "src-port": _whole(0, 65535, 2),
    "dst-port": _whole(0, 65535, 2),
}


def vary(text: str) -> Vary:
    """src-ip=10.0.0.1-10.0.0.254, src-port=1024-65535/random, vlan=5,7,9."""
    name, _, spec = text.partition("=")
    if name not in FIELDS or not spec:
        known = ", ".join(FIELDS)
        raise argparse.ArgumentTypeError(f"{text!r} is not FIELD=VALUES; fields: {known}")
    convert = FIELDS[name]
    ends, _, order = spec.partition("/")
    low, dash, high = ends.partition("-")
    if order not in ("", "random") or (order and not dash):
        raise argparse.ArgumentTypeError(f"{text!r}: a range may end in /random, nothing else")
    if not dash:
        return Vary(name, tuple(convert(one) for one in spec.split(",")))
    first, last = convert(low), convert(high)
    start, stop = int.from_bytes(first, "big"), int.from_bytes(last, "big") + 1
    if len(first) != len(last) or stop <= start:
        raise argparse.ArgumentTypeError(f"{text!r} is an empty range")
    if order:
        draw = random.Random(text)  # the same each time
        chosen = [draw.randrange(start, stop) for _ in range(MAX_VALUES)]
    elif stop - start > MAX_VALUES:
        raise argparse.ArgumentTypeError(f"{text!r} has more than {MAX_VALUES} values: /random")
    else:
        chosen = list(range(start, stop))
    return Vary(name, tuple(value.to_bytes(len(first), "big") for value in chosen))


def flows(varies: list[Vary]) -> int:
    """Different headers, until they come round again, or as many as are kept."""
    return min(MAX_VALUES, lcm(*(len(one.values) for one in varies)))
