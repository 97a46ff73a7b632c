"""The driver against the honest model: any sequence of calls, with the books kept beside it."""

from __future__ import annotations

import gc

import numpy as np
from books import Books, Held, Known, Parcel, Rings, copied
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from machines import run_as_test
from nic import HEADER, PAGE, Nic, frame

from pyvirtnet.testing import NetDevice

SIZES = st.sampled_from([14, 14, 60, 60, 127, 128, 129, 200, 1514, 4084, 4085, 5000, 9014, 13, 1])
ANY = st.integers(0, 99)
NUMBER = st.sampled_from([64, 64, 5, 2, 1, 0])
FLAG = st.booleans()


class Traffic(RuleBasedStateMachine):
    """Frames in are frames out; counters add up; every page is where it should be."""

    @initialize(
        ring=st.sampled_from([8, 32, 4, 2]),
        spare=st.sampled_from([64, 8, 1, 0]),
        start=st.sampled_from([0, 0xFFF0, 0xFFFF]),
        mergeable=st.booleans(),
        merge=st.sampled_from(["fill", "random"]),
    )
    def open(self, *, ring, spare, start, mergeable, merge):
        gc.disable()  # only `collect` finds cycles
        self.ring, self.pages, self.number = ring, ring + spare, 0
        self.device = NetDevice(queue_sizes=(ring, ring), start_index=start, merge=merge)
        self.features = [] if mergeable else ["-mrg_rxbuf"]
        self.largest = min(65535, ring * PAGE - HEADER) if mergeable else PAGE - HEADER
        self.held: list[Held] = []
        self.knots: list[Parcel] = []
        self.start()

    def start(self):
        self.nic = Nic(self.device, pages=self.pages, features=self.features)
        self.pool = self.nic.port.queues[0].pool
        self.rings, self.books = Rings(), Books()

    def teardown(self):
        if hasattr(self, "nic"):
            self.held.clear()
            self.nic.port.close()
            gc.enable()

    def fresh(self, sizes):
        """Frames that were never seen before."""
        self.number += len(sizes)
        return [frame(size, self.number - i) for i, size in enumerate(sizes)]

    # ---- the device

    @rule(sizes=st.lists(SIZES, min_size=1, max_size=8), batch=st.booleans(), n=NUMBER, keep=FLAG)
    def deliver(self, *, sizes, batch, n, keep):
        content = self.fresh([min(size, self.largest) for size in sizes])
        while not self.device.deliver(*content, batch=batch):
            content.pop()  # until there is room
        self.rings.delivered += content
        if n:
            self.receive_some(n, keep)

    @rule(n=NUMBER, done=NUMBER, order=st.randoms(use_true_random=False), reclaim=FLAG)
    def transmit(self, *, n, done, order, reclaim):
        self.take(n)
        self.complete(done, order)
        if reclaim:
            self.reclaim()

    def take(self, n):
        taken = [self.rings.exposed.popleft() for _ in range(min(n, len(self.rings.exposed)))]
        assert self.device.take(n) == [sent.content for sent in taken]
        self.rings.taken += taken

    def complete(self, n, order):
        places = list(range(len(self.rings.taken)))
        order.shuffle(places)
        self.device.complete(order=places[:n])
        self.rings.used += [self.rings.taken[place] for place in places[:n]]
        self.rings.taken = [self.rings.taken[place] for place in sorted(places[n:])]

    # ---- receiving

    @rule(n=NUMBER, keep=FLAG)
    def receive(self, n, keep):
        self.receive_some(n or 1, keep)

    def receive_some(self, n, keep):
        burst = self.nic.port.recv_burst(n)
        content = [bytes(one) for one in burst]
        self.account_received(content, n)
        assert burst.lengths.tolist() == [len(one) for one in content]
        if keep and content:
            fragments = [len(one.frags) for one in burst]
            parcel = Parcel(self.pool, sum(fragments), len(content))
            known = [
                Known(parcel, *one) for one in zip(content, [1 + n for n in fragments], strict=True)
            ]
            self.held.append(Held(burst, parcel, known))

    def account_received(self, content, n):
        books, delivered = self.books, self.rings.delivered
        stats = self.nic.port.stats
        runts = stats.rx_runts - books.rx_runts
        seen = [delivered.popleft() for _ in range(len(content) + runts)]
        assert [one for one in seen if len(one) >= 14] == content
        assert len(content) <= n
        if delivered and not seen:
            assert not self.pool.free_slots, "frames wait, and none was received"
        books.rx_runts += runts
        books.rx_frames += len(content)
        books.rx_bytes += sum(map(len, content))
        if stats.tx_reclaimed != books.tx_reclaimed:  # it had run out of pages
            self.account_reclaimed()

    # ---- what callers keep

    @precondition(lambda self: self.held)
    @rule(at=ANY, key=st.data())
    def keep_a_part(self, at, key):
        held = self.held[at % len(self.held)]
        burst = held.thing
        if not hasattr(burst, "heads") or not len(burst):
            return
        count = len(burst)
        some = st.lists(st.integers(-count, count - 1), max_size=6)
        kind = key.draw(st.sampled_from(["slice", "indices", "mask", "frame", "frags", "heads"]))
        if kind in ("slice", "indices", "mask"):
            picks = {
                "slice": st.slices(count),
                "indices": some.map(lambda numbers: np.array(numbers, np.int64)),
                "mask": st.lists(st.booleans(), min_size=count, max_size=count).map(np.array),
            }
            picked = key.draw(picks[kind])
            part = burst[picked]
            known = [held.frames[i] for i in np.arange(count)[picked]]
            assert len(part) == len(known)
        else:
            i = key.draw(st.integers(0, count - 1))
            part = {"frame": burst[i], "frags": burst[i].frags, "heads": burst.heads}[kind]
            if kind == "frags" and not part:
                return  # an empty tuple holds nothing
            known = [held.frames[i]] if kind == "frame" else []
        self.held.append(Held(part, held.parcel, known))

    def look(self, at):
        held = self.held[at % len(self.held)]
        if hasattr(held.thing, "heads"):
            assert [bytes(one) for one in held.thing] == [one.content for one in held.frames]
        elif hasattr(held.thing, "head"):
            assert bytes(held.thing) == held.frames[0].content

    @precondition(lambda self: self.held)
    @rule(at=ANY, knot=st.sampled_from([False, False, False, True]))
    def drop(self, at, knot):
        self.look(at)
        held = self.held.pop(at % len(self.held))
        if knot:  # only a collection finds it
            cycle = [held.thing]
            cycle.append(cycle)
            self.knots.append(held.parcel)

    # ---- sending

    def send(self, things, known):
        """`known` is what goes into the transmit ring, if all of it does."""
        self.account_reclaimed()  # every send begins with it
        try:
            sent = self.nic.port.send_burst(things)
        except ValueError:
            copies = not hasattr(things, "heads")
            assert any(
                one.pieces > self.ring or (copies and one.parcel.pages > self.pages)
                for one in known
            )
            return
        if sent < len(known):
            room = self.ring - sum(one.pieces for one in self.rings.outgoing)
            copies = not hasattr(things, "heads")
            assert sum(one.pieces for one in known[: sent + 1]) > room or copies
        self.rings.exposed += known[:sent]
        self.books.tx_frames += sent
        self.books.tx_bytes += sum(len(one.content) for one in known[:sent])

    @rule(sizes=st.lists(SIZES, max_size=6), kind=st.sampled_from([bytes, bytearray, tuple, iter]))
    def send_copies(self, sizes, kind):
        content = self.fresh([max(14, size) for size in sizes])
        known = [copied(self.pool, one) for one in content]
        if kind is iter:
            things = iter(content)
        elif kind is tuple:
            things = [(one[:9], bytearray(one[9:])) for one in content]
        else:
            things = [kind(one) for one in content]
        self.send(things, known)

    @precondition(lambda self: self.held)
    @rule(at=ANY)
    def send_held(self, at):
        held = self.held[at % len(self.held)]
        if not hasattr(held.thing, "head") and not hasattr(held.thing, "heads"):
            return
        things = held.thing if hasattr(held.thing, "heads") else [held.thing]
        self.send(things, held.frames)

    @rule(n=st.integers(1, 8), size=st.sampled_from([14, 60, 1514, 9014]))
    def send_rows(self, n, size):
        burst = self.nic.port.alloc_burst(n, size)
        content = self.fresh([size] * n)
        burst.data[:] = np.frombuffer(b"".join(content), np.uint8).reshape(n, size)
        parcel = Parcel(None, 0, 0)
        self.send(burst, [Known(parcel, one) for one in content])

    def reclaim(self):
        expected = len(self.rings.used)
        assert self.nic.port.reclaim() == expected
        self.account_reclaimed()

    def account_reclaimed(self):
        self.books.tx_reclaimed += len(self.rings.used)
        self.rings.used.clear()

    # ---- life

    def lose_all(self):
        self.account_reclaimed()  # what was used before counts as sent
        self.books.rx_lost += len(self.rings.delivered)
        self.books.tx_lost += len(self.rings.exposed) + len(self.rings.taken)
        self.rings = Rings()

    @rule(what=st.sampled_from(["silence", "silence", "speak", "collect", "reset", "reopen"]))
    def live(self, what):
        if what in ("silence", "speak"):
            for index in (0, 1):
                self.device.silence(index, what == "silence")
        elif what == "collect":
            gc.collect()
            self.knots.clear()
        else:
            self.lose_all()
            self.reopen() if what == "reopen" else self.nic.port.reset()

    def reopen(self):
        self.nic.port.close()
        self.check_counters()
        self.start()

    # ---- always

    @invariant()
    def nothing_is_lost(self):
        if not hasattr(self, "nic"):
            return
        holders = [
            *(held.parcel for held in self.held),
            *self.knots,
            *(sent.parcel for sent in self.rings.outgoing),
        ]
        alive = {id(one): one for one in holders if one.pool is self.pool}.values()
        assert self.nic.held_pages == sum(parcel.pages for parcel in alive)
        assert self.nic.held_slots == sum(parcel.slots for parcel in alive)
        assert self.nic.port.tx_pending == len(self.rings.outgoing)
        self.device.check()
        self.check_counters()

    def check_counters(self):
        stats = self.nic.port.stats
        for name, value in vars(self.books).items():
            assert getattr(stats, name) == value, name


TestTraffic = run_as_test(Traffic, wanted=40, steps=50)
