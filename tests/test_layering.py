"""Imports point down the list of rooms in docs/architecture.md, and to nothing but it."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "pyvirtnet"
BRIDGES = {"scapy.py": "scapy"}  # to what users may have: nothing else imports these rooms
OUTSIDE = {"numpy", "pyudev", "cython", "cpython", "libc", "posix"}
EXTRAS = {"rich", "scapy", "matplotlib"}  # of commands that do without where they are missing
_STATEMENT = re.compile(
    r"^\s*(?:from\s+([.\w]+)\s+c?import\s+\(?([\w, ]*)|c?import\s+([\w.]+))", re.M
)


def rooms() -> list[str]:
    """The list, from the top: file names without their ending, and folders."""
    text = (ROOT / "docs/architecture.md").read_text().split("## The house")[1].split("\n## ")[0]
    rows = re.findall(r"^\|\s*(`[^|]*`)\s*\|", text, re.MULTILINE)
    return [name.split(".")[0].rstrip("/") for row in rows for name in re.findall(r"`(.*?)`", row)]


def sources() -> dict[str, str]:
    """Every module of the package with its text, by its path in it."""
    files = [path for ending in ("py", "pyx", "pxd") for path in PACKAGE.rglob(f"*.{ending}")]
    return {str(path.relative_to(PACKAGE)): path.read_text() for path in sorted(files)}


def room_of(path: str) -> str:
    return Path(path).parts[0].partition(".")[0]


def imported(path: str, text: str) -> set[str]:
    """What a file imports, as absolute dotted names."""
    names = set()
    package = ["pyvirtnet", *path.split("/")[:-1]]
    for source, members, plain in _python(text) if path.endswith(".py") else _cython(text):
        level = len(source) - len(source.lstrip("."))
        base = package[: len(package) - level + 1] if level else []
        if plain:
            names.add(plain)
        elif stem := source.lstrip("."):
            names.add(".".join([*base, stem]))
        else:
            names |= {".".join([*base, member]) for member in members}
    return names


def _python(text: str):
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (("", [], alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            members = [alias.name for alias in node.names]
            yield "." * node.level + (node.module or ""), members, ""


def _cython(text: str):
    for source, members, plain in _STATEMENT.findall(text):
        yield source, members.replace(",", " ").split(), plain


def violations(files: dict[str, str], order: list[str]) -> list[str]:
    """Imports that point up the list, out of it, or out of the house."""
    found = []
    for path, text in files.items():
        here = room_of(path)
        for name in sorted(imported(path, text)):
            top, _, rest = name.partition(".")
            there = rest.split(".")[0] or "__init__"
            if top != "pyvirtnet":
                extras = EXTRAS if path.startswith("cli/") else {BRIDGES.get(path)}
                if top not in OUTSIDE | extras | sys.stdlib_module_names:
                    found.append(f"{path} imports {name}, which is not a dependency")
            elif here not in order or there not in order:
                missing = here if here not in order else there
                found.append(f"{path} imports {name}: {missing} is not in docs/architecture.md")
            elif order.index(there) < order.index(here):
                found.append(f"{path} imports {name}: up the list")
    return found


def test_imports_point_down():
    assert violations(sources(), rooms()) == []


def test_every_file_has_a_room():
    assert {room_of(path) for path in sources()} - set(rooms()) == set()


def test_every_room_has_a_file():
    ends = ("", ".py", ".pyx", ".pxd", ".h")
    assert [
        room for room in rooms() if not any((PACKAGE / (room + e)).exists() for e in ends)
    ] == []


def test_the_device_model_stands_alone():
    """Shared with the driver it would share its mistakes."""
    for path, text in sources().items():
        if path.startswith("testing/"):
            for name in imported(path, text):
                top = name.split(".")[0]
                own = name.startswith("pyvirtnet.testing")
                assert own or top in sys.stdlib_module_names or top in ("libc", "cython"), (
                    f"{path}: {name}"
                )


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("dma.py", "from .port import Port"),
        ("dma.py", "from . import port"),
        ("dma.py", "import pyvirtnet.port"),
        ("dma.py", "from pyvirtnet import _ring"),
        ("dma.py", "import pyvirtnet"),
        ("dma.py", "from .no_such_room import x"),
        ("dma.py", "import scapy"),
        ("dma.py", "def late():\n    from .transport.sim import open_sim"),
        ("vfio/device.py", "from ..transport.base import Transport"),
        ("vfio/device.py", "from .. import negotiate"),
        ("vfio/device.py", "from ..cli import bind"),
        ("testing/split.py", "from ..spec import Feature"),
        ("_pages.pyx", "from ._ring cimport RxRing"),
        ("_pages.pxd", "from ._burst cimport (\n    Burst,\n)"),
        ("_pages.pyx", "from . cimport _burst"),
        ("_split.pxd", "cimport pyvirtnet._ring"),
        ("_ring.pyx", "    from ._queue import QueuePair"),
        ("new_room.py", "from .spec import PAGE"),
    ],
)
def test_a_planted_import_is_found(path, line):
    assert len(violations({path: f"import os\n{line}\n"}, rooms())) == 1


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("port.py", "from . import dma\nfrom .transport.base import Doorbell\nimport numpy as np"),
        ("vfio/device.py", "from . import uapi\nfrom ..dma import Region"),
        (
            "_ring.pyx",
            "from ._pages cimport Pool\nfrom libc.stdint cimport uint8_t\ncimport cython",
        ),
        ("cli/bind.py", "import pyvirtnet\nfrom ..bind import status"),
    ],
)
def test_imports_that_point_down_are_none_of_its_business(path, line):
    assert violations({path: line}, rooms()) == []
