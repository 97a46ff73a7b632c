"""Rules of split virtqueues and their notifications, held by the driver (VIRTIO 1.3, 2.7)."""

import re
import struct
import subprocess
import sysconfig
import threading
from pathlib import Path

import pytest
from later import Later
from nic import PAGE, frame, frames

from pyvirtnet import Port
from pyvirtnet.testing import NetDevice
from pyvirtnet.transport.sim import SimTransport

NEXT, WRITE = 1, 2
ROOT = Path(__file__).parent.parent


def descriptors(nic, index):
    """The descriptor table of a queue as it lies in memory: (address, length, flags, next)."""
    return list(struct.iter_unpack("<QIHH", nic.device.queues[index]._table))


def chains(nic, index):
    """Descriptors of every buffer that the device has, walked by hand."""
    table, found = descriptors(nic, index), []
    for head in nic.device.queues[index]._in_flight:
        at, chain = head, [table[head]]
        while chain[-1][2] & NEXT:
            assert len(chain) <= len(table), "a loop"
            at = chain[-1][3]
            chain.append(table[at])
        found.append(chain)
    return found


@pytest.mark.rule("SPL-001")
@pytest.mark.parametrize("size", [2, 4, 8, 16, 32, 64, 128, 256, 512, 1024])
def test_the_parts_of_a_ring_are_aligned(make_nic, size):
    nic = make_nic(queue_sizes=(size, size))
    spans = {}
    for index in (0, 1):
        areas = nic.device._areas[index]
        assert areas.size == size
        assert (areas.descriptors % 16, areas.driver % 2, areas.device % 4) == (0, 0, 0)
        spans[areas.descriptors] = 16 * size
        spans[areas.driver] = 6 + 2 * size
        spans[areas.device] = 6 + 8 * size
    ends = 0
    for start in sorted(spans):
        assert start >= ends, "two parts overlap"
        ends = start + spans[start]


@pytest.mark.rule("VQC-004", "VQC-005", "SPL-003", "SPL-004", "SPL-007", "SPL-009", "SPL-031")
def test_chains_as_they_lie_in_memory(make_nic):
    """Receive buffers are one written descriptor each, what is sent is only read, never INDIRECT,
    though the device offers it."""
    nic = make_nic(queue_sizes=(32, 32), pages=200)
    nic.device.deliver(frame(65535), frame(60, 1), frame(5000, 2))
    burst = nic.port.recv_burst(8)
    assert nic.port.send_burst(burst) == 3
    assert nic.port.send_burst(frames(4)) == 4
    assert nic.device.transmit_pending() == 7
    assert nic.device.receive_room() == 32
    for ((_, length, flags, _),) in chains(nic, 0):
        assert (length, flags) == (PAGE, WRITE)
    sent = chains(nic, 1)
    assert [len(chain) for chain in sent] == [1 + 17, 1, 1 + 2, 1, 1, 1, 1]
    for chain in sent:
        assert {flags for _, _, flags, _ in chain[:-1]} <= {NEXT}
        assert chain[-1][2] == 0
        assert sum(length for _, length, _, _ in chain) <= 12 + 65535
    assert nic.transmitted() == [frame(65535), frame(60, 1), frame(5000, 2), *frames(4)]


@pytest.mark.rule("SPL-024")
def test_a_used_ring_starts_anew_without_flags(nic):
    """The device left its wish for no kicks in it; the model objects to one not blank."""
    for index in (0, 1):
        nic.device.silence(index)
    nic.pass_through(frames(300))
    nic.port.reset()
    assert [nic.device.queues[index]._used[0] for index in (0, 1)] == [0, 0]
    nic.port.send_burst(frames(1))
    assert nic.device.kicks[1] == 1


@pytest.mark.rule("SPL-025", "SPL-026", "SPL-027")
@pytest.mark.parametrize("event", [0, 1, 5, 0x7FFF, 0xFFF0, 0xFFFF])
def test_kicks_follow_the_flags_and_not_avail_event(nic, event):
    used = nic.device.queues[1]._used
    struct.pack_into("<H", used, 4 + 8 * 256, event)
    for number in range(1, 5):
        nic.port.send_burst(frames(3))
        assert nic.device.kicks[1] == number
        assert nic.device.missed_kicks() == []
        nic.transmitted()
    nic.device.silence(1)
    struct.pack_into("<H", used, 4 + 8 * 256, event)
    for _ in range(4):
        nic.port.send_burst(frames(3))
        nic.transmitted()
    assert nic.device.kicks[1] == 4


@pytest.mark.rule("SPL-013", "SPL-014", "SPL-036")
def test_flags_of_the_available_ring(nic):
    """1 while nobody waits; 0, whatever happens, while somebody does; nothing else is ever seen."""
    seen = []
    flags = nic.device.queues[0]._avail
    look = nic.device.queues[0]._check_avail_flags

    def watch():
        seen.append(struct.unpack_from("<H", flags)[0])
        look()

    nic.device.queues[0]._check_avail_flags = watch
    nic.device.deliver(*frames(10))
    nic.receive()
    assert nic.port.recv_burst(1, timeout=0.001) is not None
    with Later(nic, lambda: nic.device.deliver(frame(60))):
        assert len(nic.port.recv_burst(8, timeout=None)) == 1
    assert set(seen) == {0, 1}
    assert struct.unpack_from("<H", flags) == (1,)
    assert struct.unpack_from("<H", nic.device.queues[1]._avail) == (1,)


# ---- interrupts ----------------------------------------------------------------------------------


class OneVector(SimTransport):
    """Every interrupt of the device arrives at one and the same eventfd."""

    def interrupt_fd(self, index):
        return super().interrupt_fd(0)

    def _interrupt(self, index):
        super()._interrupt(0)


class Waiting:
    """A thread that waits for frames on a port, until it has so many."""

    def __init__(self, port, count):
        self.got = []
        self._thread = threading.Thread(target=self._run, args=(port, count))
        self._thread.start()

    def _run(self, port, count):
        while len(self.got) < count:
            self.got += [bytes(one) for one in port.recv_burst(8, timeout=None)]

    def end(self):
        self._thread.join(30)
        assert not self._thread.is_alive(), "it still waits"
        return self.got


@pytest.mark.rule("SPL-017")
def test_interrupts_without_cause_do_no_harm(nic):
    waiting = Waiting(nic.port, 3)
    for number in range(3):
        for _ in range(20):
            for index in (0, 1, None):
                nic.device.raise_interrupt(index)
        nic.device.deliver(frame(60, number))
    assert waiting.end() == frames(3)
    for _ in range(20):
        nic.device.raise_interrupt(0)
    assert len(nic.port.recv_burst(8)) == 0
    assert len(nic.port.recv_burst(8, timeout=0.01)) == 0


@pytest.mark.rule("PCI-057", "SPL-017")
def test_one_interrupt_for_frames_and_for_the_configuration():
    device = NetDevice()
    with Port(OneVector(device)) as port:
        waiting = Waiting(port, 2)
        device.set_link(False)
        device.deliver(frame(60))
        device.set_link(True)
        device.set_link(False)
        device.deliver(frame(60, 1))
        assert waiting.end() == frames(2)
        assert not port.link.up
        device.check()


# ---- order in memory -----------------------------------------------------------------------------

# Store buffering, 2.7.13.4.1: an index is published, then a wish read; on the other side the wish
# is written, then the index read. One side at least has to see the other's store.
LITMUS = r"""
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include "_barrier.h"

enum { ROUNDS = 200000 };
static _Alignas(128) uint16_t index_, wish;
static _Alignas(128) int at[2];
static uint16_t saw_wish, saw_index;
static int missed;

static void meet(int me, int round)
{
    __atomic_store_n(&at[me], round, __ATOMIC_SEQ_CST);
    for (int spins = 0; __atomic_load_n(&at[!me], __ATOMIC_SEQ_CST) < round; spins++)
        if (spins > 4000)
            sched_yield();
}

static void *device(void *unused)
{
    for (int round = 1; round <= ROUNDS; round++) {
        meet(1, 2 * round - 1);
        vn_poke(&wish, (uint16_t)round);
        vn_full_fence();
        saw_index = vn_observe(&index_);
        meet(1, 2 * round);
    }
    return unused;
}

int main(void)
{
    pthread_t thread;
    pthread_create(&thread, 0, device, 0);
    for (int round = 1; round <= ROUNDS; round++) {
        meet(0, 2 * round - 1);
        vn_publish(&index_, (uint16_t)round);
        vn_full_fence();
        saw_wish = vn_peek(&wish);
        meet(0, 2 * round);
        missed += saw_wish != (uint16_t)round && saw_index != (uint16_t)round;
    }
    pthread_join(thread, 0);
    printf("%d\n", missed);
    return 0;
}
"""


@pytest.mark.rule("SPL-035")
def test_no_wish_for_kicks_is_missed(tmp_path):
    """The fences of _barrier.h, on two threads of this machine."""
    (tmp_path / "litmus.c").write_text(LITMUS)
    compiler = sysconfig.get_config_var("CC").split()[0]
    command = [compiler, "-O2", "-pthread", f"-I{ROOT / 'pyvirtnet'}", "-o", "litmus", "litmus.c"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=60)
    done = subprocess.run(
        [tmp_path / "litmus"], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout == "0\n"


def body(source, head):
    """The lines of a Cython function, without comments and docstring."""
    text = source.split(head, 1)[1].split("\n\n\n", 1)[0]
    return re.sub(r'(?s:""".*?""")|#.*', "", text.split(":\n", 1)[1])


@pytest.mark.rule("SPL-034", "SPL-035")
def test_the_order_of_a_publication():
    """The index is stored with release, then comes a full fence, then the device's flags are read;
    and nothing else stores an index once a ring is set up."""
    split = (ROOT / "pyvirtnet/_split.pxd").read_text()
    steps = re.findall(r"publish\(|full_fence\(|peek\(|poke\(", body(split, "bint split_publish("))
    assert steps == ["publish(", "full_fence(", "peek(", "peek("]  # avail_event, or flags
    barrier = (ROOT / "pyvirtnet/_barrier.h").read_text()
    assert re.search(r"vn_publish\(.*?\)\n{\n.*ATOMIC_RELEASE\);\n}", barrier)
    assert re.search(r"vn_full_fence\(void\)\n{\n.*thread_fence\(__ATOMIC_SEQ_CST\);\n}", barrier)
    stores = [
        (path.name, line.strip())
        for path in sorted((ROOT / "pyvirtnet").glob("_*.p[yx][xd]"))
        for line in path.read_text().splitlines()
        if re.search(r"(publish|poke)\(&\w+(\.vq)?\.avail\.idx|avail\.idx\s*=[^=]", line)
    ]
    assert stores == [
        ("_split.pxd", "publish(&vq.avail.idx, vq.published)"),
        ("_split.pyx", "poke(&vq.avail.idx, start)"),
    ]
