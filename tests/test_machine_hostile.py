"""The driver against the hostile model: any misdeeds between any calls, and only typed errors."""

from __future__ import annotations

from driven import User, comes_back, conserved
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from machines import run_as_test
from nic import Nic

from pyvirtnet.testing import MISDEEDS, HostileDevice

ANY = st.integers(0, 99)


class Siege(RuleBasedStateMachine):
    """Whatever the device does: its own errors, no page lost, and after a reset all is well."""

    @initialize(
        ring=st.sampled_from([2, 8, 32]),
        start=st.sampled_from([0, 0xFFF0]),
        mergeable=st.booleans(),
    )
    def open(self, *, ring, start, mergeable):
        self.features = [] if mergeable else ["-mrg_rxbuf"]
        self.device = HostileDevice(rate=0.0, queue_sizes=(ring, ring), start_index=start)
        self.start()

    def start(self):
        self.nic = Nic(self.device, features=self.features)
        self.user = User(self.nic, 0)

    def teardown(self):
        if hasattr(self, "nic"):
            self.device.heal()
            self.nic.port.close()

    # ---- the device

    @rule(seed=ANY)
    def step(self, seed):
        self.device.rng.seed(seed)
        self.device.step()

    @rule(name=st.sampled_from(sorted(MISDEEDS)), seed=ANY)
    def misbehave(self, name, seed):
        self.device.misbehave(name, seed)

    # ---- its driver's user

    @rule(seed=ANY)
    def act(self, seed):
        self.user.rng.seed(seed)
        self.user.act()

    @rule(n=st.sampled_from([1, 2, 64]), keep=st.booleans())
    def receive(self, n, keep):
        self.user.attempt(lambda: self.keep(self.nic.port.recv_burst(n), keep))

    def keep(self, burst, wanted):
        assert all(len(bytes(one)) == len(one) >= 14 for one in burst)
        if wanted:
            self.user.held += [burst, burst[::-1], burst.heads, *burst]

    @precondition(lambda self: self.user.held)
    @rule(at=ANY)
    def send_held(self, at):
        thing = self.user.held[at % len(self.user.held)]
        if hasattr(thing, "lengths") and all(len(one) <= self.nic.port.max_frame for one in thing):
            self.user.attempt(lambda: self.nic.port.send_burst(thing))

    @rule()
    def drop_all(self):
        self.user.held.clear()

    @rule()
    def reset(self):
        self.user.attempt(self.nic.port.reset)

    @rule()
    def recover(self):
        comes_back(self.user)

    @rule()
    def reopen(self):
        """Whatever was held stays readable; the device may hinder the opening."""
        self.nic.port.close()
        assert all(len(bytes(one)) for held in self.user.held[:1] for one in held)
        self.device.heal()
        held = self.user.held
        self.start()
        self.user.held = held

    # ---- always

    @invariant()
    def no_page_is_lost(self):
        if hasattr(self, "nic"):
            conserved(self.nic)


TestSiege = run_as_test(Siege, examples=60, steps=40)
