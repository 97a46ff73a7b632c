"""The guest's side of the remote tests: a JSON line for each report, to the host."""

import json
import os
import subprocess

import pytest

_FD = int(os.environ.get("PYVIRTNET_REPORTS_FD", "-1"))  # -1: somebody runs pytest by hand


def kernel() -> list[tuple[str, str]]:
    """What the guest's kernel said last: NICs come and go by its leave."""
    said = subprocess.run(["dmesg"], capture_output=True, text=True, check=False)
    return [("The kernel's last lines", "\n".join(said.stdout.splitlines()[-40:]))]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if _FD < 0:
        return
    crash = getattr(report.longrepr, "reprcrash", None)
    skipped = isinstance(report.longrepr, tuple)
    line = {
        "nodeid": report.nodeid,
        "when": report.when,
        "outcome": report.outcome,
        "duration": report.duration,
        "text": "" if skipped or not report.longrepr else report.longreprtext,
        "message": crash.message if crash else "",
        "skip": report.longrepr if skipped else None,
        "xfail": getattr(report, "wasxfail", None),
        "sections": report.sections + (kernel() if report.failed else []),
    }
    data = json.dumps(line).encode() + b"\n"
    while data:
        data = data[os.write(_FD, data) :]
