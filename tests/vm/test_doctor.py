"""pyvirtnet doctor on a real machine: it names what is missing, and its own mend mends it."""

import json
import shlex
from typing import Any

import pytest

from pyvirtnet.cli import bind, doctor

MACHINE = {"ports": 2}

NIC, OTHER = "0000:00:04.0", "0000:00:05.0"


def examined(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, list[dict[str, Any]]]:
    capsys.readouterr()
    status = doctor.main([*words, "--json"])
    found = json.loads(capsys.readouterr().out)
    return status, found["findings"]


def test_what_it_says_mends_it(capsys: pytest.CaptureFixture[str]) -> None:
    status, findings = examined(capsys, NIC)
    (missing,) = [one for one in findings if one["state"] == "missing"]
    assert (status, missing["subject"]) == (3, NIC)
    assert "mrg_rxbuf" in findings[-1]["said"]
    sudo, pyvirtnet, _, *mend = shlex.split(missing["mend"])
    assert (sudo, pyvirtnet) == ("sudo", "pyvirtnet")
    assert bind.main(mend) == 0
    try:
        status, findings = examined(capsys, NIC, "--open")
        assert (status, [one for one in findings if one["state"] == "missing"]) == (0, [])
        said = [one["said"] for one in findings if one["subject"] == NIC]
        assert any(text.startswith("ready: ") for text in said)
        assert any(text.startswith("opens: ") for text in said)
    finally:
        assert bind.main(["restore", NIC]) == 0
