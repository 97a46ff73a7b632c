"""The sources obey their linters, formatters and type checkers, and the stubs say what is so."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CYTHON = sorted(str(path) for path in ROOT.glob("pyvirtnet/**/*.p[yx][xd]"))
STUBS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in ROOT.glob("pyvirtnet/**/*.pyi")
)
pytestmark = pytest.mark.unsanitized("about the sources")

# Put into every extension module by Cython, for its own use.
UNSTUBBED = r".*\.__test__" + "\n" + r".*\.__pyx_capi__" + "\n"


CYTHON_LINT = ("-c", "from cython_lint.cython_lint import main; raise SystemExit(main())")


def run(*command):
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    env = {**os.environ, "PATH": tools}  # cython-lint calls pycodestyle by its name
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False, env=env
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "command",
    [
        ("-m", "ruff", "check", "pyvirtnet", "tests", "examples"),
        ("-m", "ruff", "format", "--check", "pyvirtnet", "tests", "examples"),
        (*CYTHON_LINT, *CYTHON),
        ("-m", "mypy"),
    ],
    ids=["ruff check", "ruff format", "cython-lint", "mypy"],
)
def test_linters(command):
    run(*command)


def test_stubs_match_the_modules(tmp_path):
    allowed = tmp_path / "allowed"
    allowed.write_text(UNSTUBBED)
    options = ("--ignore-disjoint-bases", "--allowlist", str(allowed))
    run("-m", "mypy.stubtest", *options, *STUBS)


def test_every_extension_that_python_may_use_has_a_stub():
    """The core, _copy and _pick offer nothing to Python."""
    modules = {Path(path).stem for path in CYTHON if path.endswith(".pyx")}
    stubbed = {Path(stub.replace(".", "/")).name for stub in STUBS}
    core = {
        "_post",
        "_receive",
        "_reclaim",
        "_transmit",
        "_big",
        "_late",
        "_offload",
        "_packed",
        "_split",
    }
    assert modules - stubbed == core | {"_copy", "_pick"}


SOURCES = sorted(
    path
    for pattern in ("pyvirtnet/**/*.p*", "tests/**/*.py", "examples/*", "tools/*", "vm-images/**/*")
    for path in ROOT.glob(pattern)
    if path.is_file() and path.suffix not in (".pyc", ".pyi", ".typed")
)


def test_the_first_line_of_every_file_says_what_it_is_for():
    missing = []
    for path in SOURCES:
        lines = [line for line in path.read_text().splitlines()[:3] if line != "#!/bin/sh"]
        if not lines or not lines[0].startswith(('"""', "# ", "/* ")):
            missing.append(str(path.relative_to(ROOT)))
    assert missing == []
