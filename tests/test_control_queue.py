"""The control queue in both ring formats: laps, wraps, late answers, silence, lies."""

import threading

import pytest
from commands import Commander, commander

from pyvirtnet import DeviceBroken, DeviceGone, DeviceTimeout, QueueBusy
from pyvirtnet.control.queue import MAX_ANSWER, MAX_COMMAND
from pyvirtnet.spec import Command
from pyvirtnet.testing.layout import U16, USED_ELEMENT

FORMATS = [
    (),
    ("event_idx",),
    ("in_order",),
    ("in_order", "event_idx"),
    ("ring_packed",),
    ("ring_packed", "event_idx"),
    ("ring_packed", "in_order"),
    ("notification_data", "event_idx"),
    ("ring_packed", "notification_data"),
]
SPLIT = [one for one in FORMATS if "ring_packed" not in one]
ON, OFF = (Command.PROMISC, b"\1"), (Command.PROMISC, b"\0")
names = "-".join


@pytest.mark.parametrize("features", FORMATS, ids=names)
@pytest.mark.parametrize("start", [0, 1, 63, 0xFFF0, 0xFFFF])
@pytest.mark.parametrize("size", [2, 8, 64])
def test_laps(features, start, size):
    """More commands than descriptors, past every wrap; the model checks each."""
    with commander(*features, start=start, size=size) as made:
        for lap in range(3 * size + 20):
            assert made.control.ask(*(OFF if lap % 2 else ON)) == b""
            assert made.device.control.filter.promiscuous == (lap % 2 == 0)
        assert not made.device.interrupts[2]


@pytest.mark.parametrize("size", [3, 5, 7, 63])
@pytest.mark.parametrize("start", [0, 1, 3, 100])
@pytest.mark.parametrize("events", [(), ("event_idx",)], ids=["", "event_idx"])
def test_packed_rings_of_any_size(size, start, events):
    with commander("ring_packed", *events, start=start, size=size) as made:
        for lap in range(4 * size):
            made.control.ask(*(OFF if lap % 2 else ON))
        assert len(made.device.control.commands) == 4 * size


@pytest.mark.parametrize("features", FORMATS, ids=names)
def test_the_longest_command_and_the_longest_answer(features):
    with commander(*features) as made:
        queue = made.control._queue
        longest = bytes([0xEE, 0xEE]) + bytes(range(256)) * ((MAX_COMMAND - 2) // 256)
        longest = longest.ljust(MAX_COMMAND, b"\xaa")
        assert queue.submit("do it", longest, MAX_ANSWER) == b"\1"
        assert made.device.control.commands == [(0xEE, 0xEE, longest[2:])]
        for command, room in ((longest + b"x", 1), (b"\0\0", MAX_ANSWER + 1), (b"\0\0", 0)):
            with pytest.raises(ValueError, match="is the most"):
                queue.submit("do it", command, room)


@pytest.mark.parametrize("features", FORMATS, ids=names)
def test_kicks_only_where_the_device_wants_them(features):
    """Strict: a kick that was not asked for is a violation, one that is missing stops us."""
    with commander(*features) as made:
        made.device.silence(2)
        made.control.seconds = 0.01
        with pytest.raises(DeviceTimeout):
            made.control.ask(*OFF)
        made.device.silence(2, False)
        made.control.seconds = 1
        made.control.ask(*ON)
        assert [data for _, _, data in made.device.control.commands] == [b"\0", b"\1"]


@pytest.mark.parametrize("features", ["event_idx", "ring_packed event_idx"])
@pytest.mark.parametrize("places", [1, 2, 3, 6, 9])
@pytest.mark.parametrize("start", [0, 0xFFFC])
def test_a_kick_where_the_device_asked_for_it(features, places, start):
    """It asks for one some places ahead; the command that gets there kicks."""
    packed = "ring_packed" in features
    with commander(*features.split(), start=start, size=8) as made:
        made.device.ask_kick_after(2, places)
        made.control.seconds = 0
        served = made.device.control.commands
        exposed = 0
        while not served:
            exposed += 2 if packed else 1
            assert exposed < places + 2
            look(made, places, exposed)


def look(made, places, exposed):
    """One more command; the device sees it without a kick unless that was asked for."""
    if exposed < places:
        with pytest.raises(DeviceTimeout):
            made.control.ask(*ON)
        made.device.missed_kicks()
        made.device.control.commands.clear()
    else:
        made.control.ask(*ON)
        assert made.device.control.commands


# ---- silence -------------------------------------------------------------------------------------


@pytest.mark.parametrize("features", FORMATS, ids=names)
def test_a_device_that_does_not_answer(features):
    with commander(*features) as made:
        made.device.control.mute = True
        made.control.seconds = 0.05
        with pytest.raises(DeviceTimeout, match="did not set promiscuous mode") as caught:
            made.control.ask(*OFF)
        assert "within 0.05 s" in caught.value.why
        assert "port.reset()" in caught.value.mend
        with pytest.raises(DeviceTimeout):  # at once there is no second command beside it
            made.control.ask(*ON)
        assert len(made.queue.ready) == 1
        made.answer()
        made.control.ask(*ON)
        assert [data for _, _, data in made.device.control.commands] == [b"\0", b"\1"]


@pytest.mark.parametrize("features", FORMATS, ids=names)
def test_an_answer_that_comes_in_time(features):
    with commander(*features) as made:
        made.device.control.mute = True

        timer = threading.Timer(0.05, made.answer)
        timer.start()
        made.control.ask(*OFF)
        timer.join()
        assert made.device.control.filter.promiscuous is False


@pytest.mark.parametrize("features", FORMATS, ids=names)
def test_ctrl_c_while_waiting_leaves_a_working_queue(features, monkeypatch):
    with commander(*features) as made:
        made.device.control.mute = True

        def interrupted(_):
            raise KeyboardInterrupt

        monkeypatch.setattr("pyvirtnet.control.queue.time.sleep", interrupted)
        with pytest.raises(KeyboardInterrupt):
            made.control.ask(*OFF)
        monkeypatch.undo()
        made.answer()
        made.control.ask(*ON)
        assert [data for _, _, data in made.device.control.commands] == [b"\0", b"\1"]


@pytest.mark.parametrize("features", FORMATS, ids=names)
def test_a_kick_that_ctrl_c_prevented_is_made_good(features, monkeypatch):
    with commander(*features) as made:

        def interrupted(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr("pyvirtnet.control.queue.ring", interrupted)
        with pytest.raises(KeyboardInterrupt):
            made.control.ask(*OFF)
        monkeypatch.undo()
        assert made.device.control.commands == []
        made.control.ask(*ON)
        assert [data for _, _, data in made.device.control.commands] == [b"\0", b"\1"]


def test_a_device_that_dies_in_the_middle_of_a_command(monkeypatch):
    with commander() as made:
        made.device.control.mute = True

        def gone():
            raise DeviceGone("sim:test is gone", "it was unplugged", "plug it in")

        monkeypatch.setattr(made.control._queue, "_check", gone)
        with pytest.raises(DeviceGone, match="unplugged"):
            made.control.ask(*OFF)
        made.answer()


def test_a_device_that_asks_for_a_reset_in_the_middle_of_a_command():
    made = Commander()
    made.device.control.mute = True
    made.device.need_reset()
    with pytest.raises(DeviceBroken, match="DEVICE_NEEDS_RESET"):
        made.control.ask(*OFF)
    made.close()


def test_a_command_in_the_middle_of_another():
    """As from a signal handler."""
    with commander() as made:
        caught = []
        inner = made.device.control.execute

        def execute(*arguments):
            try:
                made.control.ask(*ON)
            except QueueBusy as busy:
                caught.append(busy)
            return inner(*arguments)

        made.device.control.execute = execute
        made.control.ask(*OFF)
        assert len(caught) == 1
        assert "another command" in caught[0].why


# ---- lies ----------------------------------------------------------------------------------------


def lie(made, write, words):
    """The device writes something; the command is DeviceBroken, and so is every one after it."""
    made.device.control.mute = True
    made.device.on_kick = lambda: write(made.queue)
    with pytest.raises(DeviceBroken, match=words) as caught:
        made.control.ask(*OFF)
    assert "port.reset()" in caught.value.mend
    made.device.on_kick = None
    with pytest.raises(DeviceBroken, match=words):
        made.control.ask(*ON)
    made.close()


def used(*elements, advance=None):
    """Writes used elements into a split ring."""

    def write(queue):
        for at, element in enumerate(elements):
            slot = 4 + 8 * ((queue._given + at) % queue.size)
            USED_ELEMENT.pack_into(queue._device_area, slot, *element)
        index = queue._given + (len(elements) if advance is None else advance)
        U16.pack_into(queue._device_area, 2, index & 0xFFFF)

    return write


@pytest.mark.parametrize("features", SPLIT, ids=names)
@pytest.mark.parametrize("start", [0, 0xFFFF])
@pytest.mark.parametrize(
    ("write", "words"),
    [
        (used((1 << 31, 1)), "answered buffer 2147483648"),
        (used((64, 1)), "answered buffer 64"),
        (used((1, 1)), "answered buffer 1,"),
        (used((0x3E, 1), (0x3E, 1)), "used 2 commands"),
        (used(advance=0x8000), "used 32768 commands"),
        (used(advance=-1), "used 65535 commands"),
    ],
)
def test_lies_of_a_split_ring(features, start, write, words):
    lie(Commander(*features, start=start), write, words)


def used_packed(name, length):
    """Writes a used descriptor over the first one that was exposed."""

    def write(queue):
        at = 16 * (queue._given % queue.size)
        marks = 0x8080 if queue._wrap(queue._given) else 0
        queue._table[at + 8 : at + 16] = (
            length.to_bytes(4, "little") + name.to_bytes(2, "little") + marks.to_bytes(2, "little")
        )

    return write


@pytest.mark.parametrize("start", [0, 63, 64])
@pytest.mark.parametrize("name", [1, 64, 0xFFFF])
def test_lies_of_a_packed_ring(start, name):
    lie(Commander("ring_packed", start=start), used_packed(name, 1), f"answered buffer {name}")


@pytest.mark.parametrize("start", [0, 0xFFFE])
@pytest.mark.parametrize("length", [0, 2, 4096, 0xFFFFFFFF])
@pytest.mark.parametrize("packed", [False, True])
def test_lengths_that_cannot_be(packed, length, start):
    made = Commander(*(["ring_packed"] if packed else []), start=start)
    head = 2 * start % 64
    write = used_packed(0, length) if packed else used((head, length))
    lie(made, write, f"it wrote {length} bytes into an answer of 1")


@pytest.mark.parametrize("ack", [2, 0x80, 0xFF])
def test_an_answer_that_is_neither_yes_nor_no(ack):
    with commander() as made:
        made.device.control.execute = lambda *_: bytes([ack])
        with pytest.raises(DeviceBroken, match=rf"answered {ack:#x}, neither OK nor ERR"):
            made.control.ask(*OFF)


def test_an_answer_that_was_not_written():
    """A length is no proof: what is not written is neither OK nor ERR."""
    made = Commander()
    made.device.control.mute = True
    made.device.on_kick = lambda: used((0, 1))(made.queue)
    with pytest.raises(DeviceBroken, match="answered 0xff"):
        made.control.ask(*OFF)
    made.close()
