"""The benchmarks of RFC 2544, 26.1 to 26.4, as searches over trials; no traffic of their own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from ._pktgen_report import Row

SHORT = 0.97  # of a rate: a sender that stays below was the limit, not what is tested
STEP = 0.1  # of the loss curve, of the highest rate

Trial = Callable[[float], Row]  # at so many frames a second
Burst = Callable[[int], Row]  # of so many frames, back to back


class Interrupted(Exception):
    """Raised by a trial that was not let run to its end: what was found before it stands."""


@dataclass(frozen=True)
class Throughput:
    """The highest rate at which no more than the tolerated share was lost; `by` says of what.

    by  "device": more was lost above; "sender": this program sent no faster; "rate": the top;
        "interrupted": the search was not let go on
    """

    pps: float
    by: str
    trials: list[Row]


@dataclass(frozen=True)
class Longest:
    """Frames of the longest burst that arrived whole, each time; `by` says why none is longer.

    by  "device": longer ones lost frames; "time": a trial has no more; "interrupted": as above
    """

    frames: int
    by: str
    trials: list[Row]


def loss(row: Row) -> float:
    """The share of frames that did not arrive whole; all, if none was sent."""
    sent = row.sent or 0
    return 1.0 if not sent else ((row.lost or 0) + (row.corrupt or 0)) / sent


def throughput(trial: Trial, top: float, tolerated: float, precision: float) -> Throughput:
    """26.1, by halving: between the highest rate that passed and the lowest that did not.

    These are rates that were asked for, so that each trial halves; what is found is what was sent.
    """
    trials: list[Row] = []
    best, low, high, rate, by = 0.0, 0.0, top, top, "rate"
    while not trials or high - low > precision * top:
        try:
            row = trial(rate)
        except Interrupted:
            by = "interrupted"
            break
        trials.append(row)
        sent = row.sent_pps or 0.0
        if loss(row) <= tolerated:
            best = max(best, min(rate, sent))
            if sent < SHORT * rate:
                by = "sender"
                break
            low = rate
        else:
            by, high = "device", rate
        rate = (low + high) / 2
    return Throughput(best, by, trials)


def loss_curve(trial: Trial, top: float) -> list[Row]:
    """26.3: from the highest rate down by tenths, until two trials in a row lose nothing."""
    rows: list[Row] = []
    with suppress(Interrupted):
        for tenth in range(10, 0, -1):
            rows.append(trial(top * STEP * tenth))
            if len(rows) > 1 and not loss(rows[-1]) and not loss(rows[-2]):
                break
    return rows


def back_to_back(burst: Burst, most: int, repeats: int) -> Longest:
    """26.4, by halving: the longest burst that arrives whole, each time of `repeats`."""
    rows: list[Row] = []

    def passes(frames: int) -> bool:
        for _ in range(repeats):
            rows.append(burst(frames))
            if loss(rows[-1]):
                return False
        return True

    low, high = 0, most
    try:
        if passes(most):
            return Longest(most, "time", rows)
        while high - low > max(1, low // 100):
            middle = (low + high) // 2
            low, high = (middle, high) if passes(middle) else (low, middle)
    except Interrupted:
        return Longest(low, "interrupted", rows)
    return Longest(low, "device", rows)
