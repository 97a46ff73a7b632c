"""`sim:tap/NAME`: the kernel's TCP/IP at the end of a simulated cable, in namespaces of its own."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import pyvirtnet
from pyvirtnet import errors

HERE = Path(__file__).parent
INSIDE = ["unshare", "--user", "--map-root-user", "--net"]


def lacking() -> str:
    """Why there can be no tap here, if so."""
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "there is no /dev/net/tun to write to"
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return "there is no unshare (util-linux) or no ip (iproute2)"
    done = subprocess.run([*INSIDE, "true"], capture_output=True, text=True, check=False)
    return done.stderr.strip() if done.returncode else ""


WHY = "" if os.environ.get("CI") == "true" else lacking()
needs_taps = pytest.mark.skipif(WHY != "", reason=WHY)


def scene(name: str) -> dict[str, object]:
    """What a scene of tap_scenes.py found, played in namespaces of its own."""
    command = [*INSIDE, sys.executable, HERE / "tap_scenes.py", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


@needs_taps
def test_the_kernel_pings_fwd() -> None:
    found = scene("ping")
    assert found["answers"] == list(range(50))
    assert found["interface_after"] is False


@needs_taps
def test_tcp_goes_through_fwd() -> None:
    """A client here and a server in another namespace: a megabyte there and back, unharmed."""
    found = scene("tcp")
    assert found["sent"] == found["received"] == 1 << 20
    assert found["equal"] is True
    assert found["dropped"] == 0


@needs_taps
def test_an_interface_that_is_down_or_taken() -> None:
    found = scene("trouble")
    assert found["dropped"] == 3
    assert found["after"] == 1
    assert found["taken"] == "DeviceBusy"
    assert found["fork"] is True


@pytest.mark.parametrize("name", ["", "sixteen-letters-", "a/b"])
def test_a_name_that_no_interface_has(name: str) -> None:
    with pytest.raises(pyvirtnet.NoSuchDevice, match="an interface's name has 1 to 15 bytes"):
        pyvirtnet.open(f"sim:tap/{name}")


@pytest.mark.parametrize(
    ("error", "kind", "mend"),
    [
        (PermissionError(1, "Operation not permitted"), errors.NoPermission, "ip tuntap add tap7"),
        (FileNotFoundError(2, "No such file"), errors.NoSuchDevice, "modprobe tun"),
        (OSError(16, "Device or resource busy"), errors.DeviceBusy, "ip -d link show tap7"),
    ],
)
def test_what_the_kernel_refuses(
    monkeypatch: pytest.MonkeyPatch, error: OSError, kind: type[errors.Error], mend: str
) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise error

    monkeypatch.setattr("pyvirtnet.transport.sim_tap.TapDevice", refuse)
    with pytest.raises(kind) as caught:
        pyvirtnet.open("sim:tap/tap7")
    assert mend in caught.value.mend
