"""The hostile model: repeatable, strict until it lies, and survived by the driver."""

import doctest

import pytest
from driven import User, comes_back, conserved
from nic import PLAIN, Nic, frames

from pyvirtnet.testing import MISDEEDS, HostileDevice, Violation, hostile, mask
from pyvirtnet.testing.misdeeds import RingMisdeeds

STEPS = 150
FORMATS = {
    "split": PLAIN,
    "split-in_order": PLAIN | mask("in_order", "event_idx", "indirect_desc"),
    "packed": PLAIN | mask("ring_packed"),
    "packed-in_order": PLAIN | mask("ring_packed", "in_order", "event_idx", "indirect_desc"),
}


def drive(nic, seed, steps=STEPS):
    """The device and its driver's user take turns; the device is healed and reset now and then."""
    user = User(nic, seed)
    for _ in range(steps):
        nic.device.step()
        user.act()
        conserved(nic)
        if user.rng.random() < 0.1:
            user.attempt(nic.port.reset)
        if user.rng.random() < 0.03:
            comes_back(user)
    comes_back(user)
    return user


def test_the_example_of_its_documentation():
    assert doctest.testmod(hostile).failed == 0
    assert doctest.testmod(hostile).attempted > 5


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("seed", range(12))
def test_a_random_life_with_a_hostile_device(seed, format):
    """To see a failing one: this test alone, with its seed, and the device's story."""
    options = {"queue_sizes": (16, 16)} if seed % 3 else {}
    options["features"] = FORMATS[format]
    device = HostileDevice(seed=seed, rate=0.15, start_index=0xFFF0 * (seed % 2), **options)
    nic = Nic(device)
    try:
        user = drive(nic, seed)
        assert user.errors
    except BaseException as error:
        error.add_note(f"replay: pytest 'tests/test_hostile.py' -k 'device[{seed}-{format}]'")
        error.add_note(device.story())
        raise
    finally:
        nic.port.close()


RING_MISDEEDS = [name for name in MISDEEDS if hasattr(RingMisdeeds, name)]
NO_OCCASION = {  # which needs what such a ring lacks
    "id_before_its_turn": {"split", "packed"},
    "id_inside_a_chain": {"split-in_order", "packed", "packed-in_order"},
}


@pytest.mark.parametrize(
    ("format", "name"),
    [("split", name) for name in MISDEEDS]
    + [(format, name) for format in [*FORMATS][1:] for name in RING_MISDEEDS],
)
def test_each_misdeed_is_survived(name, format, start_index):
    """Its occasions come: frames in flight both ways, chains among them."""
    features = FORMATS[format]
    device = HostileDevice(
        features=features, seed=1, rate=0.0, start_index=start_index, queue_sizes=(32, 32)
    )
    nic = Nic(device)
    user = User(nic, 2)
    try:
        for seed in range(4):
            assert device.deliver(*frames(4), *frames(4, 5000))
            burst = nic.port.recv_burst(64)
            assert len(burst) == 8
            assert nic.port.send_burst(burst) == 8
            del burst
            done = device.misbehave(name, seed)
            assert format in NO_OCCASION.get(name, ()) or "no occasion" not in done, done
            for call in (user.receive, user.send_copies, user.look, nic.port.reclaim):
                user.attempt(call)
            user.attempt(nic.port.reset)
            user.attempt(user.look)
            conserved(nic)
            comes_back(user)
    finally:
        nic.port.close()


def test_the_same_seed_is_the_same_run():
    logs = []
    for _ in range(2):
        device = HostileDevice(seed=5, rate=0.2, queue_sizes=(32, 32))
        nic = Nic(device)
        drive(nic, 9, 60)
        nic.port.close()
        logs.append(list(device.log))
    assert logs[0] == logs[1]
    assert len({line.partition(":")[0] for line in logs[0]}) > 5


def test_it_is_strict_until_it_lies():
    device = HostileDevice(rate=0.0)
    with pytest.raises(Violation, match="begins with a reset"):
        device.write_status(1)


def test_what_it_spoilt_is_not_the_drivers_fault():
    device = HostileDevice(rate=0.0)
    nic = Nic(device)
    device.misbehave("rewrite_descriptors", 3)
    device.misbehave("rewrite_available", 3)
    assert device.tainted
    device.kick(0)
    assert device.violations == []
    nic.port.close()


def test_misdeeds_are_chosen_by_name():
    only = ("id_twice", "index_out_of_reach")
    device = HostileDevice(rate=1.0, misdeeds=only)
    nic = Nic(device)
    for _ in range(20):
        device.step()
    assert {line.partition(":")[0] for line in device.log} == set(only)
    assert eval(repr(device)).misdeeds == only
    assert repr(device) in device.story()
    nic.port.close()
    for wrong in (lambda: HostileDevice(misdeeds=["being late"]), lambda: device.misbehave("x")):
        with pytest.raises(ValueError, match="no such misdeed"):
            wrong()
