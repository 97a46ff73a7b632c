"""One queue pair at the Python border: arguments in, bursts out, codes to exceptions."""

cimport cython

from cpython.pyport cimport PY_SSIZE_T_MAX
from cpython.ref cimport Py_INCREF, PyObject
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from ._barrier cimport enter, leave, peek32
from ._burst cimport LONG_BURST, Burst, RxBurst, empty_rx_burst, new_rx_burst
from ._late cimport late_begin, late_forget, late_give_back, late_look, late_receive
from ._offload cimport BIT_CSUM, has
from ._pages cimport (
    HEADER_BYTES,
    PagePool,
    Store,
    drop_store,
    give_slots,
    hold_slots,
    seen_later,
    take_slots,
    take_store,
)
from ._post cimport rx_create, rx_destroy, rx_posted, rx_refill
from ._receive cimport rx_pending, rx_receive, rx_waiting
from ._reclaim cimport tx_create, tx_destroy, tx_reclaim, tx_set_interrupts
from ._ring cimport (
    BELL_NONE,
    BROKEN_COUNT,
    BROKEN_ID,
    BROKEN_INDEX,
    BROKEN_LENGTH,
    BROKEN_ORDER,
    BROKEN_REPEAT,
    RingFormat,
    ring_memory,
    set_bell,
    table_bytes,
)
from ._transmit cimport tx_publish, tx_rewind
from ._waiting cimport Waiter, now_seconds

from time import sleep

from ._ring import ring_bytes
from .errors import DeviceBroken, PortClosed, QueueBusy
from .nic import Stats

LOOK_SECONDS = 0.01  # between looks at the device while nothing moves
BUSY_LOOK_SECONDS = 1.0  # and while something does: a device that works may be wanted back
SLICE_SECONDS = 0.1  # of sleep, between looks at the device and at signals
POLL_SECONDS = 0.001  # of sleep, where there are no interrupts
LATE_AFTER = 64  # bursts in a row at which nobody has looked: no need to copy the next one's heads
LATE_FROM = 16  # if it is a burst of so many frames
RELEASE_FROM = LONG_BURST  # frames of a call, on a port of several pairs

cdef enum:
    CALLS_PER_CLOCK = 64        # calls between looks at the clock
    VAIN_CALLS = 16             # that found nothing, before bursts that are held give buffers back

_LIES = {
    BROKEN_INDEX: "it claims to have used {} more buffers, more than it was given",
    BROKEN_ID: "it returned buffer {}, which is outside the ring",
    BROKEN_REPEAT: "it returned buffer {}, which it did not have",
    BROKEN_LENGTH: "it wrote {} bytes into a buffer: less than a header or more than the buffer",
    BROKEN_COUNT: "it announced a frame of {} buffers, not as many as it delivered",
    BROKEN_ORDER: "it returned buffer {} out of turn, and had promised to keep order (IN_ORDER)",
}


@cython.auto_pickle(False)
@cython.no_gc_clear  # its end needs the pool
cdef class QueuePair(Waiter):
    """A receive queue and a transmit queue, and the pages both use.

    One thread at a time may receive and one may send; a second one gets `QueueBusy`. Now and then,
    sooner while nothing moves, `look` is called; it may stop the pair, or start it anew.

    With several pairs, calls for `release_from` frames and more work on them without the GIL.
    """

    def __cinit__(self):
        self.closed = PortClosed("a queue pair is closed", "it was never started")
        self.irq_fd, self.wake_fds = -1, ()

    def __init__(self, name, look, index=0, restart=None, *, bint shared=False):
        self.name, self.look = f"{name} queue pair {index}" if index else name, look
        self.index, self.restart = index, restart
        self.nothing = empty_rx_burst()
        self.release_from = RELEASE_FROM if shared else PY_SSIZE_T_MAX
        self.late_after, self.late_from = LATE_AFTER, LATE_FROM

    def reset(self, *, size=None):
        """Start both rings of this pair anew, empty, while the other pairs go on (2.6.1).

        `size` is the entries that each has from now on, up to what it had at first; until the port
        is reset. Frames in flight are lost, bursts and views stay as they are, counters go on.
        Raises FeatureMissing where the device has no RING_RESET, QueueBusy while another thread is
        in a call, ValueError for a size that no ring has here, DeviceTimeout.
        """
        if self.closed is not None:
            raise self._gone()
        self.restart(self, size)

    # Underscored are the calls that only the port may make: they follow what the device does.

    def _set_up(self, PagePool pool not None, size_t rx_offset, uint32_t rx_size, size_t tx_offset,
                uint32_t tx_size, *, bint mergeable, uint32_t max_frame, uint16_t start=0,
                bint packed=False, bint in_order=False, bint event_idx=False, bint indirect=False,
                bint big=False, uint8_t header_bytes=HEADER_BYTES, uint32_t alignment=0,
                uint64_t features=0):
        """Two empty rings; the pair was stopped, or was never started. Counters go on."""
        cdef uint8_t *rx_memory
        cdef uint8_t *tx_memory
        cdef RingFormat format
        if self.closed is None or self.nothing is None or pool.region is None:
            raise RuntimeError("a queue pair is stopped, and its pool set up, before it is set up")
        layout = {"packed": packed, "alignment": alignment}
        rx_memory = ring_memory(pool, rx_offset, rx_size,
                                ring_bytes(rx_size, tables=big and indirect, **layout), packed)
        tx_memory = ring_memory(pool, tx_offset, tx_size,
                                ring_bytes(tx_size, tables=indirect,
                                           headers=has(features, BIT_CSUM), **layout), packed)
        if not self._let_go():
            raise self._busy("setting up")
        self.stopped = False
        self.pool = pool
        format.packed, format.in_order = packed, in_order
        format.event_idx, format.indirect, format.big = event_idx, indirect, big
        format.header_bytes, format.alignment = header_bytes, alignment
        format.features = features
        format.ring_bytes = ring_bytes(rx_size, **layout)
        rx_create(&self.rx, &pool.pool, &format, rx_size, rx_memory, pool.region.iova + rx_offset,
                  start, mergeable)
        format.ring_bytes = ring_bytes(tx_size, **layout)
        format.table_bytes = table_bytes(tx_size, indirect)
        tx_create(&self.tx, &format, tx_size, tx_memory, pool.region.iova + tx_offset, start,
                  max_frame)

    def __dealloc__(self):
        late_forget(&self.rx)
        rx_destroy(&self.rx)
        tx_destroy(&self.tx)

    def _start(self, rx_bell, tx_bell, int irq_fd, others=()):
        """The device is live: post the receive buffers and ring the bell (3.1.1 step 8).

        `irq_fd` and `others` are eventfds that wake whoever waits here.
        """
        if self.pool is None or self.closed is None:
            raise RuntimeError("a queue pair is set up before it is started")
        self.rx_call = set_bell(&self.rx.bell, rx_bell)
        self.tx_call = set_bell(&self.tx.bell, tx_bell)
        self.irq_fd, self.wake_fds = irq_fd, (irq_fd, *others)
        if self.waker is not None:
            self._sleeper()
        rx_refill(&self.rx, True)  # while no other thread gets in
        self._call_rx()  # likewise: it would kick for the same buffers
        self.closed, self.away, self.armed = None, False, False
        self._call_sleeper()

    def _stop(self, why):
        """No more calls. The device has been reset: what it held goes back to its holders.

        False if a call is under way, in another thread or below on this one's stack: it ends in
        `why`, soon if it waits for frames, and only then lets go of the queues' memory.
        """
        self.closed, self.away, self.stopped, self.wake_fds = why, False, True, ()
        self.rx.bell.kind = self.tx.bell.kind = BELL_NONE  # the doorbell goes with the device
        self.rx.bell.due = self.tx.bell.due = 0
        self._drop_kept()
        try:
            self._call_sleeper()
        finally:
            gone = self._let_go()
        return gone

    def _hold(self, why):
        """As `pause`, for a device that has yet to let go of the rings: they stay as they are."""
        before, was_away = self.closed, self.away
        self.closed, self.away = why, True
        if enter(&self.rx_busy):
            if enter(&self.tx_busy):
                self._drop_kept()
                leave(&self.rx_busy)
                leave(&self.tx_busy)
                return True
            leave(&self.rx_busy)
        self.closed, self.away = before, was_away
        return False

    def _pause(self, why):
        """As `stop`, but until it is set up again, calls find nothing instead of raising.

        False, and nothing has changed, if a call is under way.
        """
        before, was_away = self.closed, self.away
        self.closed, self.away = why, True
        if self.pool is None or self._let_go():
            self._call_sleeper()
            return True
        self.closed, self.away = before, was_away
        return False

    cdef bint _let_go(self):
        if not enter(&self.rx_busy):
            return False
        if not enter(&self.tx_busy):
            leave(&self.rx_busy)
            return False
        if self.pool is not None:
            self.rx.stats.lost += rx_waiting(&self.rx)
            if self.tx.in_flight != NULL:
                tx_reclaim(&self.tx)
        late_forget(&self.rx)
        rx_destroy(&self.rx)
        tx_destroy(&self.tx)
        gone = self.pool, self.rx_call, self.tx_call
        self.pool = None  # its memory lives on only if a burst does
        self.rx_call = self.tx_call = None
        leave(&self.rx_busy)
        leave(&self.tx_busy)
        del gone  # not before: their ends may let other threads run
        return True

    cdef RxBurst _stay_out(self, call, bint lent=False):
        """There is no device now, or somebody is in already. Who finds none holds up no reset.

        Whose side is only `lent`, to who receives and takes back what was sent, is not refused.
        """
        if self.closed is None:
            if not lent:
                raise self._busy(call)
        elif not self.away:
            raise self._gone()
        return self.nothing

    cdef int _leave(self, uint8_t *busy) except -1:
        leave(busy)
        if self.stopped:
            self._let_go()
        return 0

    def _before_fork(self):
        """A child sees bursts as they are, whatever the device gets of this process meanwhile."""
        late_look(&self.rx)

    def _abandon(self, why):
        """In a forked child: no more calls. The device goes on for the parent."""
        self.closed, self.away = why, False
        self.rx.pool = NULL  # as another thread may have left it; nothing goes back there
        if self.waker is not None:
            self.waker.close()

    # ---- receive ---------------------------------------------------------------------------

    def recv_burst(self, Py_ssize_t n, *, timeout=0.0):
        """Up to `n` received frames as an RxBurst; empty when none came within `timeout` seconds.

        A timeout of 0 polls, None waits for ever. Never more frames than the ring has entries.
        """
        cdef RxBurst burst
        if n < 1:
            raise ValueError(f"recv_burst takes a burst size of at least 1, not {n}")
        self._begin()
        if self.closed is None and enter(&self.rx_busy):
            try:
                burst = self._poll(n)
                if self.watched:
                    if burst.count == 0:
                        self._arm()
                    elif self.armed:
                        self._disarm()
            finally:
                self._leave(&self.rx_busy)
        else:
            burst = self._stay_out("recv_burst")
            if self.watched:
                self._forget()
        if burst.count == 0:
            if timeout is None or timeout > 0:
                return self._wait(n, timeout)
            if not timeout == 0:
                raise ValueError(f"a timeout is None or seconds from 0 up, not {timeout!r}")
            self._idle()
        return burst

    cdef RxBurst _poll(self, Py_ssize_t n):
        cdef int pending
        cdef RxBurst burst
        if self.kept is not None:
            return self._take_kept(n)
        pending = rx_pending(&self.rx)
        if pending < 0:
            late_give_back(&self.rx, True)  # slots and pages, for who sends
            raise self._broken("receive", pending, self.rx.lie)
        # The device may need every buffer for the one frame that is waited for.
        self.in_vain = 0 if pending else self.in_vain + 1
        if self.rx.nlate:
            late_give_back(&self.rx, self.in_vain >= VAIN_CALLS or (self.watched and pending == 0))
        burst = self.nothing if pending == 0 else self._receive(n, pending)
        if self.closed is not None:  # since then, while we were without the GIL
            return burst
        rx_refill(&self.rx, burst.count == 0)
        if self.rx.nhungry and enter(&self.tx_busy):  # out of pages: sent frames may hold some
            self.lent = True
            try:
                # says where the driver is now, not after what follows (2.9)
                self._call_rx_after(burst)
                if tx_reclaim(&self.tx) > 0 and self.closed is None:
                    rx_refill(&self.rx, burst.count == 0)
            finally:
                self.lent = False
                leave(&self.tx_busy)
        self.rx.stats.no_pages += self.rx.nhungry != 0
        if self.rx.bell.due:
            self._call_rx_after(burst)
        return burst

    cdef RxBurst _take_kept(self, Py_ssize_t n):
        cdef RxBurst burst = self.kept
        if burst.count > n:
            self.kept = burst[n:]
            return burst[:n]
        self.kept = None
        return burst

    cdef void _drop_kept(self) noexcept:
        """The rings begin anew."""
        if self.kept is not None:
            self.rx.stats.lost += self.kept.count
            self.kept = None

    cdef int _call_rx_after(self, RxBurst burst) except -1:
        """A doorbell that raises, as one that is a call may, does not lose what was received."""
        try:
            self._call_rx()
        except BaseException:
            if burst.count:
                self.kept = burst
            raise
        return 0

    cdef RxBurst _receive(self, Py_ssize_t n, int pending):
        cdef uint32_t first = 0, slots = self._take_slots(min(n, <Py_ssize_t>pending), &first)
        cdef Store *store
        cdef int got
        if slots == 0:
            self.rx.stats.no_slots += 1
            return self.nothing
        store = take_store(&self.pool.pool, slots)
        if store == NULL:
            give_slots(&self.pool.pool, first, slots)
            raise MemoryError
        hold_slots(store, first, slots)
        got = self._fill(store, slots, pending)
        if got <= 0:
            drop_store(store, 1)
            if got < 0:
                raise self._broken("receive", got, self.rx.lie)
            return self.nothing
        if <uint32_t>got < slots:
            store.nslots = got
            give_slots(&self.pool.pool, first + got, slots - got)
        seen_later(store)
        store.owner = <PyObject *>self.pool
        Py_INCREF(self.pool)
        return new_rx_burst(store)

    cdef inline uint32_t _take_slots(self, uint32_t want, uint32_t *first) noexcept:
        """A run of head slots, of which the receive ring may hold some for bursts that are gone."""
        cdef uint32_t slots = take_slots(&self.pool.pool, want, first)
        if slots < want and self.rx.nlate:
            give_slots(&self.pool.pool, first[0], slots)
            late_give_back(&self.rx, True)
            slots = take_slots(&self.pool.pool, want, first)
        return slots

    cdef inline int _fill(self, Store *store, uint32_t slots, int pending) noexcept:
        """Up to `slots` frames of `pending` used buffers; how many, or a BROKEN_ code."""
        cdef int late = late_receive(&self.rx, store, slots) if self._late(slots) else 0
        if <uint32_t>late == slots:
            return late
        if slots < self.release_from:
            return rx_receive(&self.rx, store, slots, pending - late)
        return self._receive_without_gil(store, slots, pending - late)

    cdef inline bint _late(self, uint32_t frames) noexcept:
        """Are heads of so many frames to be copied when somebody looks at them, or now?"""
        cdef bint late = (self.late_from <= frames < self.release_from
                          and peek32(&self.pool.pool.unseen) >= self.late_after)
        return (late or self.rx.nlate) and late_begin(&self.rx, frames, late)

    cdef int _receive_without_gil(self, Store *store, uint32_t slots, int pending) noexcept:
        cdef int got
        with nogil:
            self._without_gil()
            got = rx_receive(&self.rx, store, slots, pending)
        return got

    # ---- waiting ---------------------------------------------------------------------------

    def _wait(self, n, timeout):
        """Sleep until a frame or the deadline comes, with a look at the device now and then."""
        cdef RxBurst burst
        cdef double begun, now = now_seconds()
        cdef uint64_t starved
        cdef double deadline = now + 1e300 if timeout is None else now + timeout
        while True:
            begun, starved = now, self.rx.stats.no_slots
            if self.away:  # outside: no call may be under way when the device comes back
                burst = self.nothing
                sleep(min(LOOK_SECONDS, deadline - now))
            else:
                burst = self._sleep(n, min(SLICE_SECONDS, deadline - now))
            if burst.count:
                return burst
            if self.rx.stats.no_slots != starved:  # frames are there, and their place is held
                sleep(min(POLL_SECONDS, deadline - begun))
            now = now_seconds()
            if now - begun >= SLICE_SECONDS:
                self.look()
            else:
                self._look_after(LOOK_SECONDS)
            if now >= deadline:
                return burst

    cdef RxBurst _sleep(self, Py_ssize_t n, double seconds):
        """What is there once something has woken us, or after so long."""
        if self.closed is not None or not enter(&self.rx_busy):
            return self._stay_out("recv_burst")
        try:
            return self._sleep_inside(n, seconds)
        finally:
            if self.armed and not self.watched:
                self._disarm()
            self._leave(&self.rx_busy)

    cdef RxBurst _sleep_inside(self, Py_ssize_t n, double seconds):
        cdef RxBurst burst
        cdef double begun
        if self.rx.nlate:
            late_give_back(&self.rx, True)
            rx_refill(&self.rx, True)
            self._call_rx()
            if self.closed is not None:  # since then
                return self._stay_out("recv_burst")
        sleeper = self._sleeper()
        if not self._spin():
            self._arm()
            begun = now_seconds()
            sleeper.sleep(seconds if self.irq_fd >= 0 else min(seconds, POLL_SECONDS))
            self._adapt(now_seconds() - begun)
        if self.closed is not None:  # since then, while we were without the GIL
            return self._stay_out("recv_burst")
        burst = self._poll(n)
        if burst.count == 0 and self.watched:  # buffers too small for frames may have come
            self._arm()
        return burst

    # ---- transmit --------------------------------------------------------------------------

    def send_burst(self, frames):
        """Queue frames for transmission; how many were taken, always a prefix. Never blocks.

        `frames` is an RxBurst or TxBurst (nothing is copied), or a list of frames: bytes-likes
        and tuples of bytes-likes are copied, a Frame is sent from where it lies. A frame that is
        no frame (14 bytes to the port's maximum) raises, and then nothing was sent.
        """
        cdef Py_ssize_t sent = 0
        self._begin()
        if self.closed is None and enter(&self.tx_busy):
            try:
                sent = self._send(frames)
            finally:
                self._leave(&self.tx_busy)
        else:
            self._stay_out("send_burst", self.lent)
        if sent == 0:
            self._idle()
        return sent

    cdef Py_ssize_t _send(self, frames) except -1:
        cdef Py_ssize_t sent
        self._reclaim()
        try:
            if isinstance(frames, Burst):
                sent = self._put_rows(frames)
            else:
                self._free_slots()
                sent = self._put_list(frames)
            if self.closed is not None:  # since the call began
                raise self._gone()
        except BaseException:
            tx_rewind(&self.tx)
            raise
        tx_publish(&self.tx)
        if self.tx.bell.due:
            self._call_tx()
        return sent

    cdef int _free_slots(self) except -1:
        """Copies need head slots, and bursts that are gone may have some (see `_late`)."""
        if self.rx.nlate and self.closed is None and enter(&self.rx_busy):
            try:
                late_give_back(&self.rx, True)
            finally:
                self._leave(&self.rx_busy)
        return 0

    def reclaim(self):
        """Take back what the device has sent; how many frames. `send_burst` does it by itself."""
        cdef int count = 0
        if self.closed is None and enter(&self.tx_busy):
            try:
                count = self._reclaim()
            finally:
                self._leave(&self.tx_busy)
        else:
            self._stay_out("reclaim", self.lent)
        if count == 0:
            self._idle()
        return count

    cdef int _reclaim(self) except -1:
        cdef int count = tx_reclaim(&self.tx)
        if count < 0:
            raise self._broken("transmit", count, self.tx.lie)
        return count

    def _interrupt_on_transmit(self, bint wanted):
        """An experiment's switch: the device interrupts once it has sent something, or never."""
        if self.closed is not None:
            raise self._gone()
        if not enter(&self.tx_busy):
            raise self._busy("interrupts")
        tx_set_interrupts(&self.tx, wanted)
        leave(&self.tx_busy)

    @property
    def tx_pending(self) -> int:
        """Frames sent and not reclaimed yet."""
        return self.tx.stats.frames - self.tx.stats.reclaimed - self.tx.stats.lost

    # ---- the rest --------------------------------------------------------------------------

    cdef inline int _begin(self) except -1:
        """A call begins, and has nothing that an error could lose."""
        self.calls += 1
        if self.calls & (CALLS_PER_CLOCK - 1) == 0:
            self._look_after(BUSY_LOOK_SECONDS)
        return 0

    cdef int _idle(self) except -1:
        """A call found nothing to do."""
        self.idle_calls += 1
        if self.idle_calls & (CALLS_PER_CLOCK - 1) == 0:
            self._look_after(LOOK_SECONDS)
        return 0

    cdef int _look_after(self, double seconds) except -1:
        """Look whether the device is there, if the last time was so long ago."""
        cdef double now = now_seconds()
        if now - self.looked >= seconds:
            self.looked = now
            self.look()
        return 0

    cdef int _call_rx(self) except -1:
        if self.rx.bell.due:
            self.rx_call(self.rx.bell.due_value)
            self.rx.bell.due = 0  # not before: Ctrl-C may come first, and nobody would kick again
        return 0

    cdef int _call_tx(self) except -1:
        self.tx_call(self.tx.bell.due_value)
        self.tx.bell.due = 0  # as above
        return 0

    def counters(self):
        """Every counter of the pair, by name."""
        return {
            "rx_frames": self.rx.stats.frames,
            "rx_bytes": self.rx.stats.bytes,
            "rx_buffers": self.rx.stats.buffers,
            "rx_runts": self.rx.stats.runts,
            "rx_bad_headers": self.rx.stats.bad_headers,
            "rx_no_pages": self.rx.stats.no_pages,
            "rx_no_slots": self.rx.stats.no_slots,
            "rx_lost": self.rx.stats.lost,
            "rx_kicks": self.rx.stats.kicks,
            "tx_frames": self.tx.stats.frames,
            "tx_bytes": self.tx.stats.bytes,
            "tx_full": self.tx.stats.full,
            "tx_kicks": self.tx.stats.kicks,
            "tx_reclaimed": self.tx.stats.reclaimed,
            "tx_lost": self.tx.stats.lost,
        }

    @property
    def stats(self) -> Stats:
        """The pair's counters."""
        return Stats(**self.counters())

    @property
    def posted(self) -> int:
        """Receive pages that the device has or may have."""
        return 0 if self.closed is not None else rx_posted(&self.rx)

    def _busy(self, call):
        return QueueBusy(f"{call} on {self.name}",
                         "another thread is in this call, or an iterator that it was given",
                         "give each thread a queue pair of its own, or take turns with a lock")

    def _broken(self, direction, code, value):
        return DeviceBroken(f"the {direction} queue of {self.name} is stopped",
                            "the device broke the virtio contract: " + _LIES[code].format(value),
                            "port.reset() starts it anew; report it to who makes the device")
