"""A device that lies in its registers: each lie ends in a typed error, and a reset mends it."""

import pytest
from driven import User, comes_back
from nic import Nic, frame, frames

from pyvirtnet import DeviceBroken, DeviceTimeout, FeatureMissing, NotVirtioNet, PortClosed
from pyvirtnet.testing import HostileDevice, NetDevice
from pyvirtnet.testing.layout import DRIVER_OK, FEATURES_OK, NET_CONFIG


@pytest.fixture
def nic(start_index):
    """A port on a device that is honest until it is told to lie."""
    made = Nic(HostileDevice(rate=0.0, start_index=start_index))
    yield made
    made.port.close()


def in_traffic(nic):
    """Frames wait in both directions; a burst is held."""
    assert nic.device.deliver(frame(9014), *frames(4))
    user = User(nic, 0)
    burst = nic.port.recv_burst(1)
    user.check(burst, [burst])
    assert nic.port.send_burst(frames(8, 5000)) == 8
    return user


def mended(user):
    """What was held is as it was; after a reset everything works."""
    assert bytes(user.held[0].thing[0]) == frame(9014)
    comes_back(user)


def reset_fails(nic, error, words):
    """It says why, and leaves a port that is closed for traffic and can be reset again."""
    user = in_traffic(nic)
    with pytest.raises(error, match=words):
        nic.port.reset()
    for call in (lambda: nic.port.recv_burst(1), lambda: nic.port.send_burst(frames(1))):
        with pytest.raises(PortClosed, match="being reset"):
            call()
    with pytest.raises(PortClosed):
        assert nic.port.link
    return user


def idle(nic):
    for _ in range(100_000):
        assert not len(nic.port.recv_burst(1))


# ---- status --------------------------------------------------------------------------------------


@pytest.mark.parametrize("bit", [FEATURES_OK, DRIVER_OK])
def test_a_status_bit_that_is_taken_back(nic, bit):
    """FEATURES_OK read as set, and gone when the queues were set up; DRIVER_OK likewise."""
    nic.device._taken_back = bit
    before = nic.device.read_status
    if bit == DRIVER_OK:  # gone already when it is read for the first time
        nic.device.read_status = lambda: before() & ~DRIVER_OK
    try:
        with pytest.raises(DeviceBroken, match="took back what its status said"):
            nic.port.reset()
    finally:
        vars(nic.device).pop("read_status", None)
    comes_back(User(nic, 0))


@pytest.mark.rule("BAS-035", "BAS-039")
def test_features_that_are_refused_at_a_reset(nic):
    nic.device.misbehave("refuse_features")
    mended(reset_fails(nic, FeatureMissing, "refused the features"))


def test_a_status_that_never_comes(nic):
    """No stage is ever reached: the status reads 0 whatever is written."""
    nic.device.read_status = lambda: 0
    nic.device.write_status = lambda _: setattr(nic.device, "tainted", True)
    with pytest.raises(FeatureMissing, match="refused"):
        nic.port.reset()
    del nic.device.read_status, nic.device.write_status
    comes_back(User(nic, 0))


@pytest.mark.rule("BAS-006")
@pytest.mark.parametrize("told", [True, False], ids=["interrupt", "silent"])
def test_a_device_that_needs_a_reset(nic, told):
    """In mid-traffic: a port that idles finds out, its queues stop, nothing is lost."""
    user = in_traffic(nic)
    nic.device.ask_for_reset()
    if told:
        nic.device.raise_interrupt(None)
    assert len(nic.port.recv_burst(64)) == 4  # what came before is still received
    with pytest.raises(DeviceBroken, match=r"DEVICE_NEEDS_RESET(.|\n)*port\.reset\(\)"):
        idle(nic)
    assert nic.device.read_status() == 0
    for call in (lambda: nic.port.recv_burst(1), lambda: nic.port.send_burst(frames(1))):
        with pytest.raises(DeviceBroken, match="asks to be reset"):
            call()
    assert nic.port.stats.tx_lost == 8
    mended(user)


def test_a_wait_ends_when_the_device_needs_a_reset(nic):
    nic.device.need_reset()
    with pytest.raises(DeviceBroken, match="asks to be reset"):
        nic.port.recv_burst(1, timeout=30)


def test_the_link_of_a_device_that_needs_a_reset(nic):
    nic.device.need_reset()
    with pytest.raises(DeviceBroken, match="asks to be reset"):
        assert nic.port.link
    comes_back(User(nic, 0))


def test_a_device_that_needs_a_reset_at_once(nic):
    go_live = nic.device._go_live
    nic.device._go_live = nic.device.ask_for_reset
    user = reset_fails(nic, DeviceBroken, "asks to be reset")
    nic.device._go_live = go_live
    mended(user)


@pytest.mark.rule("BAS-019", "BAS-042")
def test_a_reset_that_never_completes(nic):
    """The device goes on: it is left the memory it had, the port gets other memory."""
    user = in_traffic(nic)
    memory = nic.port._memory
    nic.device._deaf = 1000
    for _ in range(3):
        with pytest.raises(DeviceTimeout, match="did not reset"):
            nic.port.reset()
        with pytest.raises(PortClosed):
            nic.port.recv_burst(1)
    for seed in range(8):
        nic.device.misbehave("write_buffers_in_flight", seed)
    nic.device._deaf = 0
    nic.port.reset()
    assert nic.port._memory is not memory
    mended(user)


def test_a_port_is_closed_though_the_reset_never_completes(nic):
    user = in_traffic(nic)
    nic.device._deaf = 1000
    nic.port.close()
    assert bytes(user.held[0].thing[0]) == frame(9014)
    assert nic.transport.closed


# ---- queues --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "error", "words"),
    [
        ((0, 256), NotVirtioNet, "no queue 0"),
        ((256, 1), NotVirtioNet, "one entry"),
        ((3, 256), DeviceBroken, "size 3"),
        ((256, 0x8001), DeviceBroken, "size 32769"),
    ],
)
def test_queue_sizes_that_cannot_be(nic, sizes, error, words):
    nic.device._queue_sizes = sizes
    mended(reset_fails(nic, error, words))


def sizes_in_turn(device, *sizes):
    """`queue_max_size` gives one after the other, the last for ever."""
    answers = list(sizes)
    device.queue_max_size = lambda _: answers.pop(0) if len(answers) > 1 else answers[0]
    device.tainted = True


def test_a_queue_size_that_shrinks_between_two_looks(nic):
    sizes_in_turn(nic.device, 256, 256, 64)
    with pytest.raises(DeviceBroken, match="has 64 entries, and 256 are needed"):
        nic.port.reset()
    del nic.device.queue_max_size
    comes_back(User(nic, 0))


def test_a_queue_size_that_grows_between_two_looks(nic):
    """The ring stays as long as its memory was made for."""
    sizes_in_turn(nic.device, 64, 64, 256)
    nic.port.reset()
    assert nic.port.info()["ring_sizes"] == [64, 64]
    del nic.device.queue_max_size
    comes_back(User(nic, 0))


def test_a_queue_that_is_shorter_at_a_reset_than_what_was_asked_for():
    """What was a wrong argument when the port was opened is now the device's doing."""
    device = HostileDevice(rate=0.0)
    nic = Nic(device, ring_size=128)
    device._queue_sizes = (64, 256)
    with pytest.raises(DeviceBroken, match="has 64 entries, and 128 are needed"):
        nic.port.reset()
    comes_back(User(nic, 0))
    nic.port.close()


# ---- configuration -------------------------------------------------------------------------------


@pytest.mark.rule("BAS-022")
def test_a_configuration_that_never_settles(nic):
    nic.device.misbehave("unsettled_config")
    with pytest.raises(DeviceTimeout, match="it changed in each"):
        assert nic.port.link
    mended(reset_fails(nic, DeviceTimeout, "it changed in each"))


@pytest.mark.rule("BAS-025")
def test_a_configuration_that_is_too_short(nic):
    nic.device.config = nic.device.config[:7]
    with pytest.raises(DeviceBroken, match="ends 1 bytes too early"):
        assert nic.port.link
    nic.device.config = b""
    mended(reset_fails(nic, DeviceBroken, "ends 6 bytes too early"))


@pytest.mark.parametrize("mtu", [0, 1, 67])
def test_an_mtu_that_cannot_be(mtu):
    device = NetDevice(mtu=mtu)
    with pytest.raises(DeviceBroken, match=f'its MTU is {mtu}(.|\n)*"-mtu"'):
        Nic(device)
    nic = Nic(device, features=["-mtu"])
    assert nic.port.mtu == 1500
    nic.port.close()
    assert Nic(NetDevice(mtu=68)).port.max_frame == 82


def test_any_configuration_at_all(nic):
    """Every field is noise: what is read has its type, and traffic does not care."""
    device = nic.device
    for seed in range(50):
        device.misbehave("garble_config", seed)
        assert len(device.config) == NET_CONFIG.size
        link = nic.port.link
        assert isinstance(link.up, bool)
        nic.pass_through(frames(2))
    comes_back(User(nic, 0))
