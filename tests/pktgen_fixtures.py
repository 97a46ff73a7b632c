"""Fixtures of the tests of tools/pktgen: the tool itself, and devices made known to it."""

import signal
from collections.abc import Iterator

import pytest
from bad_cable import Plug, Tool

import pyvirtnet
from pyvirtnet import Port
from pyvirtnet.cli import pktgen
from pyvirtnet.testing import NetDevice
from pyvirtnet.transport.sim import SimTransport


@pytest.fixture
def plug(monkeypatch: pytest.MonkeyPatch) -> Plug:
    """Makes a device known to pktgen, which gives it up soon; the name to call it by."""
    monkeypatch.setattr(pktgen, "PATIENCE", 0.2)

    def known(device: NetDevice) -> str:
        port = Port(SimTransport(device, "sim:test"))
        monkeypatch.setattr(pyvirtnet, "open", lambda _: port)
        return "sim:test"

    return known


@pytest.fixture
def tool(capsys: pytest.CaptureFixture[str]) -> Iterator[Tool]:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    yield Tool(capsys)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
