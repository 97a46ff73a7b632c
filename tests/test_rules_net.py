"""Rules of the network device's headers and buffers, held by the driver (VIRTIO 1.3, 5.1)."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nic import HEADER, PAGE, Nic, finish, frame, frames

from pyvirtnet.testing import DEFAULT_FEATURES, NetDevice, mask

BLANK = bytes(HEADER)
DIRTY = bytes([0xFF, 0x83, *range(1, 9)])  # flags, gso_type, hdr_len, gso_size, csum_start, _offset
SIZES = (14, 60, 128, 129, 1514, 4085, 9014, 65535)


def received(nic, *sizes, **how):
    for number, size in enumerate(sizes):
        assert nic.device.deliver(frame(size, number), header=DIRTY, **how)
    return nic.port.recv_burst(len(sizes))


def filled(nic):
    burst = nic.port.alloc_burst(8, 60)
    burst.data[:] = 0xFF
    return burst


WAYS = {
    "bytes": lambda nic: [frame(size) for size in SIZES[:-1]],
    "the largest": lambda nic: [frame(65535)],
    "arrays": lambda nic: [np.frombuffer(frame(1514), np.uint8)[::2]],
    "pieces": lambda nic: [(frame(14), frame(600), b"x" * 5000)],
    "made": filled,
    "some of those made": lambda nic: filled(nic)[::3],
    "received": lambda nic: received(nic, *SIZES[:-1]),
    "received, the largest": lambda nic: received(nic, 65535),
    "received in pieces": lambda nic: received(nic, 300, lengths=[12] + [50] * 6),
    "some of those received": lambda nic: received(nic, 60, 60, 9014)[[2, 0]],
    "frames received": lambda nic: list(received(nic, 60, 9014, 129)),
}


@pytest.mark.rule("NET-034", "NET-035", "NET-036", "NET-039", "NET-041", "NET-043",
                  "NET-045", "NET-047", "NET-050", "NET-060", "NET-062", "NET-068", "NET-069",
                  "NET-086")  # fmt: skip
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_twelve_zero_bytes_go_before_each_frame(nic, way):
    """Whatever the header said when the frame came, and however often it is sent."""
    burst = way(nic)
    content = [b"".join(map(bytes, one)) if isinstance(one, tuple) else bytes(one) for one in burst]
    for _ in range(3):
        assert nic.port.send_burst(burst) == len(burst)
        plain = nic.device.take_with_headers()
        assert [data[:HEADER] for data in plain] == [BLANK] * len(plain)
        nic.device.complete()
        assert [data[HEADER:] for data in plain] == content
    del burst


@pytest.mark.rule("NET-034", "NET-086")
@pytest.mark.parametrize("features", [(), ("-mrg_rxbuf",)], ids=["mergeable", "small"])
def test_headers_have_twelve_bytes_both_ways(make_nic, features):
    nic = make_nic(features=features)
    nic.device.deliver(frame(1000))
    assert bytes(nic.port.recv_burst(1)[0]) == frame(1000)
    assert nic.port.send_burst([frame(1000)]) == 1
    assert nic.device.take_with_headers() == [bytes(12) + frame(1000)]
    nic.device.complete()


fields = st.one_of(
    st.sampled_from([bytes([0xFF] * 10), DIRTY]), st.binary(min_size=10, max_size=10)
)


@pytest.mark.rule("NET-088", "NET-090", "NET-091", "NET-093", "NET-094", "NET-096")
@pytest.mark.parametrize("features", [(), ("-mrg_rxbuf",)], ids=["mergeable", "small"])
def test_what_a_received_header_says_changes_nothing(features):
    """No offload is negotiated: unknown flags, lengths and offsets are not looked at, and a frame
    with a verdict on its checksum is a frame like any other."""
    nic = Nic(queue_sizes=(64, 64), features=features, fill=False)
    sizes = st.sampled_from([14, 60, 128, 129, 1514] + ([] if features else [4085, 9014]))

    @settings(max_examples=150, deadline=None)
    @given(st.lists(st.tuples(fields, sizes), min_size=1, max_size=8))
    def headers(plan):
        for number, (header, size) in enumerate(plan):
            assert nic.device.deliver(frame(size, number), header=header)
        burst = nic.port.recv_burst(64)
        sent = [frame(size, number) for number, (_, size) in enumerate(plan)]
        assert [bytes(one) for one in burst] == sent
        assert burst.lengths.tolist() == [len(one) for one in sent]
        del burst
        nic.receive()

    headers()
    finish(nic)


@pytest.mark.rule("NET-088")
@pytest.mark.parametrize("bit", range(8))
def test_a_flag_of_a_received_header_that_nobody_asked_for(nic, bit):
    header = bytes([1 << bit]) + bytes(9)
    sent = [frame(size, size) for size in SIZES]
    for one in sent:
        assert nic.device.deliver(one, header=header)
    assert nic.receive() == sent


# ---- buffers -------------------------------------------------------------------------------------


@pytest.mark.rule("NET-080", "NET-082", "NET-024")
@pytest.mark.parametrize("mtu", [None, 68, 1500, 4070])
@pytest.mark.parametrize("mergeable", [True, False])
def test_receive_buffers_hold_what_they_have_to(make_nic, mtu, mergeable):
    """The model objects to buffers below 1526 bytes, or below the MTU and its headers, unmerged."""
    features = DEFAULT_FEATURES & ~(0 if mergeable else mask("mrg_rxbuf"))
    nic = make_nic(NetDevice(features=features, mtu=mtu))
    assert nic.device.receive_capacity() == PAGE >= max(1526, HEADER + 14 + (mtu or 0))
    longest = 14 + (mtu or 1500)
    nic.pass_through([frame(longest, number) for number in range(600)])


@pytest.mark.rule("NET-024")
@pytest.mark.parametrize("mtu", [9000, 65535])
def test_merged_buffers_hold_a_frame_of_a_large_mtu(make_nic, mtu):
    nic = make_nic(NetDevice(mtu=mtu))
    longest = min(65535, mtu + 14)
    assert nic.device.receive_room() * PAGE >= HEADER + longest
    nic.pass_through([frame(longest, number) for number in range(50)])


@pytest.mark.rule("SPL-018", "SPL-019")
@pytest.mark.parametrize("size", [14, 60, 127, 128, 129, 1514, 4084, 4085, 9014])
def test_nothing_past_the_written_length_shows(make_nic, size):
    """The device leaves noise behind each frame; counted lengths are the only truth."""
    nic = make_nic()
    nic.device.receive_room()
    noisy = nic.device.queues[0].ready
    first = [bytes(chain.views[0]) for chain in noisy]
    assert all(any(data) for data in first), "the model fills buffers with noise"
    assert nic.device.deliver(*[frame(size, number) for number in range(20)])
    burst = nic.port.recv_burst(64)
    assert [bytes(one) for one in burst] == [frame(size, number) for number in range(20)]
    for one in burst:
        assert len(one.head) + sum(len(part) for part in one.frags) == size


@pytest.mark.rule("NET-025")
@pytest.mark.parametrize("way", ["bytes", "made", "received"])
def test_nothing_longer_than_the_mtu_is_sent(make_nic, way):
    nic, other = make_nic(mtu=1500), make_nic()
    other.device.deliver(frame(1515))
    burst = {
        "bytes": lambda: [frame(1515)],
        "made": lambda: nic.port.alloc_burst(1, 1515),
        "received": lambda: other.port.recv_burst(1),
    }[way]()
    with pytest.raises(ValueError, match="1515 bytes"):
        nic.port.send_burst(burst)
    assert nic.device.transmit_pending() == 0
    assert nic.port.send_burst(frames(1, 1514)) == 1
    assert nic.transmitted() == frames(1, 1514)
