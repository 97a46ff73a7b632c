"""The driver against the hostile model: any misdeeds between any calls, and only typed errors."""

from __future__ import annotations

from driven import User, comes_back, conserved
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from machines import run_as_test
from nic import Nic, frame, frames

from pyvirtnet import Frame
from pyvirtnet.testing import DEFAULT_FEATURES, MISDEEDS, HostileDevice, mask

ANY = st.integers(0, 99)
FLAG = st.booleans()
EXTRAS: list[tuple[str, ...]] = [
    (),
    ("ring_packed",),
    ("in_order",),
    ("ring_packed", "in_order"),
]


class Siege(RuleBasedStateMachine):
    """Whatever the device does: its own errors, no page lost, and after a reset all is well."""

    @initialize(
        ring=st.sampled_from([8, 32, 4]),
        start=st.sampled_from([0, 0xFFF0]),
        mergeable=st.booleans(),
        extras=st.sampled_from(EXTRAS),
    )
    def open(self, *, ring, start, mergeable, extras):
        self.ring = ring
        self.features = [] if mergeable else ["-mrg_rxbuf"]
        self.device = HostileDevice(
            rate=0.0,
            queue_sizes=(ring, ring),
            start_index=start,
            features=DEFAULT_FEATURES | mask(*extras),
        )
        self.start()

    def start(self):
        self.nic = Nic(self.device, features=self.features)
        self.user = User(self.nic, 0)

    def teardown(self):
        if hasattr(self, "nic"):
            self.device.heal()
            self.nic.port.close()

    # ---- the device

    @rule(seed=ANY, times=st.integers(1, 5))
    def go_on(self, seed, times):
        """Honest traffic, and the driver's user takes part in it."""
        self.device.rng.seed(seed)
        self.user.rng.seed(seed)
        for _ in range(times):
            self.device.step()
            self.user.act()

    @rule(name=st.sampled_from(sorted(MISDEEDS)), seed=ANY, first=FLAG, then=FLAG)
    def misbehave(self, *, name, seed, first, then):
        """`first`: at a port that works, frames in flight; `then`: the driver looks at once."""
        if first:
            if self.device.tainted or not self.device.live:
                comes_back(self.user)
            self.go_on(seed, 3)
            self.user.attempt(lambda: self.nic.port.send_burst([frame(5000, seed)]))
        self.device.misbehave(name, seed)
        if then:
            self.receive(64, keep=bool(seed % 2))
            self.user.attempt(lambda: self.nic.port.send_burst(frames(self.ring)))

    # ---- its driver's user

    @rule(n=st.sampled_from([64, 2, 1]), keep=FLAG)
    def receive(self, n, keep):
        """A burst, and all of its parts are kept."""

        def call():
            burst = self.nic.port.recv_burst(n)
            parts = [burst, burst[::-1], burst.heads, *(one.frags for one in burst)]
            self.user.check(burst, parts if keep else ())

        self.user.attempt(call)

    @precondition(lambda self: self.user.held)
    @rule(at=ANY)
    def send_held(self, at):
        thing = self.user.held[at % len(self.user.held)].thing
        if hasattr(thing, "lengths") and all(len(one) <= self.nic.port.max_frame for one in thing):
            self.user.attempt(lambda: self.nic.port.send_burst(thing))

    @rule(what=st.sampled_from(["drop", "drop", "reset", "recover", "reopen"]))
    def live(self, what):
        if what == "drop":
            self.user.held.clear()
        elif what == "reset":
            self.user.attempt(self.nic.port.reset)
        elif what == "recover":
            comes_back(self.user)
        else:
            self.reopen()

    def reopen(self):
        """Whatever was held stays readable."""
        self.nic.port.close()
        held = self.user.held
        for kept in held:
            parts = [kept.thing] if isinstance(kept.thing, Frame) else kept.thing
            assert b"".join(map(bytes, parts))
        self.device.heal()
        self.start()
        self.user.held = held

    # ---- always

    @invariant()
    def no_page_is_lost(self):
        if hasattr(self, "nic"):
            conserved(self.nic)


TestSiege = run_as_test(Siege, wanted=80, steps=30)
