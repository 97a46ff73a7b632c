"""Pacing: how many frames are due, so that a rate is kept as closely as the loop can."""

from __future__ import annotations

FREE = 1 << 30
SLACK = 0.05  # seconds of frames that a loop that was held up makes good
WAKING = 100e-6  # seconds that a sleeper may wake too late


class Pace:
    """Frames due by the clock: evenly spaced, or `together` at a time. No rate: any time."""

    def __init__(self, pps: float | None = None, together: int = 1) -> None:
        self.pps, self.together = pps, together
        self.forgiven = 0  # frames that were not made good, the loop was too late for them
        self._start = 0.0

    def start(self, now: float) -> None:
        self._start, self.forgiven = now, 0

    def due(self, now: float, sent: int) -> int:
        """Frames that may go now, `sent` having gone."""
        if self.pps is None:
            return FREE
        earned = int((now - self._start) * self.pps) + self.together
        behind = earned - earned % self.together - sent - self.forgiven
        most = max(self.together, int(SLACK * self.pps))
        if behind > most:
            self.forgiven += behind - most
            return most
        return behind

    def wait(self, now: float, sent: int) -> float:
        """Seconds that may be slept until frames are due again; 0 where sleep is too coarse."""
        if self.pps is None:
            return 0.0
        groups = -(-(sent + self.forgiven) // self.together)
        left = self._start + groups * self.together / self.pps - now
        return left - WAKING if left > 2 * WAKING else 0.0
