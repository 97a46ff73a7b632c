"""Rules of transmitted frames and their headers: each fires when a driver breaks it."""

import struct

import pytest
from model_driver import FRAME, HEADER, MERGED, Driver, breaks

from pyvirtnet.testing import DEFAULT_FEATURES, NetDevice, mask

OFFLOADS = MERGED | mask("csum", "host_tso4")
CSUM = MERGED | mask("csum")
TCP = OFFLOADS | mask("host_ecn")
EXACT = TCP | mask("guest_hdrlen")
SEGMENT = bytes.fromhex(  # 26 bytes of TCP, whose pseudo-header sums up to 0x0020
    "00 01 02 03 04 05 06 07 08 09 0a 0b 08 00 4500002e 00000000 4006 0000 00000000 00000000"
    "1111 2222 00000000 00000000 5010 0100 0020 0000"
).ljust(60, b"\x55")
WRONG_SUM = SEGMENT[:50] + b"\x12\x34" + SEGMENT[52:]
CONGESTED = SEGMENT[:47] + b"\x90" + SEGMENT[48:]


@pytest.mark.rule(
    "NET-035", "NET-036", "NET-041", "NET-043", "NET-048", "NET-049", "NET-050", "NET-053",
    "NET-054", "NET-055", "NET-056", "NET-057", "NET-058", "NET-060",
)  # fmt: skip
@pytest.mark.parametrize(
    ("features", "header", "frame", "rule"),
    [
        (MERGED, HEADER, bytes(13), "a frame has 14 to 65589 bytes"),
        (MERGED, HEADER, bytes(65590), "a frame has 14 to 65589 bytes"),
        (MERGED, bytes(11), b"", "a frame has 14 to 65589 bytes"),
        (MERGED, struct.pack("<BBHHHHH", 0, 0, 0, 0, 0, 0, 1), FRAME, "num_buffers is 0"),
        (MERGED, struct.pack("<BBHHHHH", 1, 0, 0, 0, 0, 0, 0), FRAME, "the header is zero"),
        (MERGED, struct.pack("<BBHHHHH", 0, 0, 12, 0, 0, 0, 0), FRAME, "the header is zero"),
        (MERGED, struct.pack("<BBHHHHH", 0, 1, 0, 0, 0, 0, 0), FRAME, "the header is zero"),
        (CSUM, struct.pack("<BBHHHHH", 2, 0, 0, 0, 0, 0, 0), FRAME, "no flag but NEEDS_CSUM"),
        (CSUM, struct.pack("<BBHHHHH", 1, 0, 0, 0, 50, 9, 0), FRAME, "the checksum that"),
        (CSUM, struct.pack("<BBHHHHH", 1, 1, 54, 6, 34, 16, 0), FRAME, "gso_type asks only"),
        (OFFLOADS, struct.pack("<BBHHHHH", 1, 4, 54, 6, 34, 16, 0), FRAME, "gso_type asks only"),
        (OFFLOADS, struct.pack("<BBHHHHH", 0, 1, 54, 6, 34, 16, 0), FRAME, "segmentation needs N"),
        (OFFLOADS, struct.pack("<BBHHHHH", 1, 1, 54, 0, 34, 16, 0), FRAME, "segmentation needs a"),
        (OFFLOADS, struct.pack("<BBHHHHH", 1, 129, 54, 6, 34, 16, 0), FRAME, "GSO_ECN goes with"),
        (TCP, struct.pack("<BBHHHHH", 1, 1, 53, 6, 34, 16, 0), SEGMENT, "hdr_len covers"),
        (EXACT, struct.pack("<BBHHHHH", 1, 1, 55, 6, 34, 16, 0), SEGMENT, "hdr_len covers"),
        (TCP, struct.pack("<BBHHHHH", 1, 0, 0, 0, 34, 14, 0), SEGMENT, "lead to the right"),
        (TCP, struct.pack("<BBHHHHH", 1, 0, 0, 0, 14, 16, 0), SEGMENT, "lead to the right"),
        (TCP, struct.pack("<BBHHHHH", 1, 0, 0, 0, 34, 16, 0), WRONG_SUM, "of the pseudo-header"),
        (TCP, struct.pack("<BBHHHHH", 1, 1, 54, 6, 34, 16, 0), CONGESTED, "a packet with ECN"),
    ],
)
def test_transmitted_headers(features, header, frame, rule):
    def act(driver):
        driver.up().send(frame, header=header)
        driver.device.take()

    breaks(act, rule, device=NetDevice(features=features))


@pytest.mark.parametrize(
    ("features", "header"),
    [
        (CSUM, struct.pack("<BBHHHHH", 1, 0, 0, 0, 34, 16, 0)),
        (OFFLOADS, struct.pack("<BBHHHHH", 1, 1, 54, 6, 34, 16, 0)),
        (TCP, struct.pack("<BBHHHHH", 1, 1, 60, 6, 34, 16, 0)),
        (EXACT, struct.pack("<BBHHHHH", 1, 1, 54, 6, 34, 16, 0)),
    ],
)
def test_offloads_that_were_negotiated(features, header):
    driver = Driver(NetDevice(features=features)).up()
    for one in (FRAME, SEGMENT):
        driver.send(one, header=header)
        assert driver.device.take_with_headers() == [header + one]


@pytest.mark.rule("NET-025")
def test_frames_keep_to_the_mtu():
    def act(driver):
        driver.up().send(bytes(1515))
        driver.device.take()

    breaks(act, "a frame is no longer than the MTU and its header", mtu=1500)
    driver = Driver(mtu=1500).up()
    driver.send(bytes(1514))
    assert driver.device.take() == [bytes(1514)]
    driver = Driver(mtu=1500, features=DEFAULT_FEATURES).up()
    driver.send(bytes(1515))
    assert driver.device.take() == [bytes(1515)]
