"""The host's side of the remote tests: boots a guest for a machine, replays its reports."""

import functools
import json
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pyvirtnet.cli._vm_guest import Guest
from pyvirtnet.cli._vm_image import image, project
from pyvirtnet.cli._vm_link import TapNamespace
from pyvirtnet.cli._vm_machine import Machine
from pyvirtnet.cli._vm_package import payload
from pyvirtnet.errors import Error

HERE = Path(__file__).parent
TIMEOUT = 900.0  # seconds for all tests of one machine
TEST_TIMEOUT = 300  # seconds for one test: pytest-timeout in the guest
# stdout carries the reports, stderr what pytest and the tests print
PYTEST = f"""exec 3>&1 >&2; PYVIRTNET_REPORTS_FD=3 exec python3 -P -m pytest -c /dev/null \\
    --rootdir=/mnt/project -p no:cacheprovider -o timeout={TEST_TIMEOUT} "$@" """

_sessions: dict[str, "GuestSession"] = {}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "timeout(seconds): pytest-timeout's, here for strictness")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Guest tests come last, those of one machine together."""
    places = {key: place for place, key in enumerate(dict.fromkeys(map(_key, items)))}
    places[""] = -1
    items.sort(key=lambda item: places[_key(item)])
    for item in items:
        if _key(item):  # the guest's pytest-timeout counts, and not the host's while a guest boots
            item.add_marker(pytest.mark.timeout(0), append=False)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    key = _key(item)
    if not key:
        return None
    if key not in _sessions:
        _close_all()
        _sessions[key] = GuestSession([each for each in item.session.items if _key(each) == key])
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in _sessions[key].reports(item):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def pytest_sessionfinish() -> None:
    _close_all()


def _close_all() -> None:
    for session in _sessions.values():
        session.close()


@functools.lru_cache
def _key(item: pytest.Item) -> str:
    """The item's machine, as text; empty for a test of the host."""
    if HERE not in item.path.parents:
        return ""
    module = item.getparent(pytest.Module)
    return json.dumps(getattr(module.obj, "MACHINE", {}) if module else {}, sort_keys=True)


def _guest_id(item: pytest.Item) -> str:
    path, names = item.path.relative_to(project()), item.nodeid.partition("::")[2]
    return f"{path}::{names}"


@dataclass
class Failure:
    """The text of a failure in the guest; what pytest asks of a longrepr."""

    text: str
    message: str

    @property
    def reprcrash(self) -> SimpleNamespace:
        return SimpleNamespace(message=self.message, path="", lineno=0)

    def toterminal(self, out: Any) -> None:
        out.line(self.text)

    def __str__(self) -> str:
        return self.text


class GuestSession:
    """One boot: the selected tests of one machine."""

    def __init__(self, items: list[pytest.Item]) -> None:
        self._lines: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self._rest = b""
        self._output = bytearray()
        self._guest: Guest | None = None
        self._namespace: TapNamespace | None = None
        self._echo: subprocess.Popen[bytes] | None = None
        self._error: Error | None = None
        try:
            self._start(items)
        except Error as error:
            self._error = error

    def _start(self, items: list[pytest.Item]) -> None:
        wanted = json.loads(_key(items[0]))
        timeout = wanted.pop("timeout", TIMEOUT)
        system = image(wanted.pop("image", ""))
        machine = Machine(**wanted)
        package = payload(system)
        prefix: list[str] = []
        if machine.link == "tap":
            self._namespace = TapNamespace(machine.ports, machine.queues)
            self._namespace.__enter__()
            prefix = self._namespace.prefix
            self._echo = subprocess.Popen([*prefix, sys.executable, str(HERE / "echo.py")])
        ids = [f"/mnt/project/{_guest_id(item)}" for item in items]
        self._guest = Guest(
            system,
            package,
            machine,
            ["sh", "-c", PYTEST, "pytest", *ids],
            stdout=self._on_reports,
            stderr=self._output.extend,
            timeout=timeout,
            prefix=prefix,
        )

    def reports(self, item: pytest.Item) -> Iterator[pytest.TestReport]:
        """The item's reports, each as soon as the guest has it."""
        if self._guest is None:
            yield self._not_started(item)
            return
        lines = self._lines[_guest_id(item)]
        seen = 0
        while True:
            for line in lines[seen:]:
                seen += 1
                yield self._replay(item, line)
                if line["when"] == "teardown":
                    return
            if self._guest.status is not None and seen == len(lines):
                break
            self._guest.pump()
        yield self._lost(item)

    def close(self) -> None:
        if self._guest is not None:
            self._guest.close()
        if self._echo is not None:
            self._echo.kill()
            self._echo.wait()
        if self._namespace is not None:
            self._namespace.__exit__(None, None, None)
            self._namespace = None

    def _on_reports(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            report = json.loads(line)
            self._lines[report["nodeid"]].append(report)

    def _replay(self, item: pytest.Item, line: dict[str, Any]) -> pytest.TestReport:
        longrepr: Any = tuple(line["skip"]) if line["skip"] else None
        if line["text"]:
            longrepr = Failure(line["text"], line["message"])
        report = _report(item, line["when"], line["outcome"], longrepr, line["duration"])
        report.sections = [(f"{name} (guest)", text) for name, text in line["sections"]]
        if line["xfail"] is not None:
            report.wasxfail = line["xfail"]
        return report

    def _lost(self, item: pytest.Item) -> pytest.TestReport:
        """The guest ended without a word on this test."""
        assert self._guest is not None
        output = "\n".join(self._output.decode(errors="replace").splitlines()[-60:])
        why = self._guest.failure or f"the guest's pytest ended with {self._guest.status}"
        text = f"{why}\n--- what the guest's pytest printed last ---\n{output}"
        first = "no report from the guest: " + why.splitlines()[0]
        return _report(item, "setup", "failed", Failure(text, first))

    def _not_started(self, item: pytest.Item) -> pytest.TestReport:
        """A machine without QEMU skips, but never in CI; all else that fails is a failure."""
        text = str(self._error)
        bare = not (shutil.which("qemu-system-x86_64") and shutil.which("setpriv"))
        if bare and os.environ.get("CI") != "true":
            return _report(item, "setup", "skipped", (str(item.path), 0, f"no guest: {text}"))
        return _report(item, "setup", "failed", Failure(text, text.splitlines()[0]))


def _report(
    item: pytest.Item, when: Any, outcome: Any, longrepr: Any, duration: float = 0.0
) -> pytest.TestReport:
    return pytest.TestReport(
        nodeid=item.nodeid,
        location=item.location,
        keywords=dict.fromkeys(item.keywords, 1),
        outcome=outcome,
        longrepr=longrepr,
        when=when,
        duration=duration,
    )
