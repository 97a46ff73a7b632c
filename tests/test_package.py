"""The package as it is built and installed: nothing forgotten, nothing too much."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

import pyvirtnet
from pyvirtnet import errors
from pyvirtnet.cli._vm_image import exclusive
from pyvirtnet.cli._vm_package import _build_folder, _wheel

ROOT = Path(__file__).parent.parent
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
pytestmark = pytest.mark.unsanitized("about the package as it is installed")
# Sources of what is compiled, and folders' build files: they stay at home.
NOT_INSTALLED = {".pyx", ".pxd", ".h", ".build"}


def run(*command, **options):
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """A wheel of the sources, of which nothing is compiled that a build here has already."""
    with exclusive("package"):
        folder = _wheel(tmp_path_factory.mktemp("wheel"), _build_folder())
    (path,) = folder.glob("pyvirtnet-*.whl")
    return path


@pytest.fixture(scope="session")
def fresh(wheel, tmp_path_factory):
    """The Python of a new virtual environment with the wheel in it, and this one's packages."""
    home = tmp_path_factory.mktemp("fresh")
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    (site,) = home.glob("lib/python*/site-packages")
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index")
    run(*pip, "-q", wheel)
    others = [path for path in sys.path if path.endswith("site-packages")]
    (site / "others.pth").write_text("\n".join(others))  # without the hooks of editable installs
    return python


def sources():
    """Files of the package that git knows."""
    listed = run("git", "-C", ROOT, "ls-files", "pyvirtnet").splitlines()
    return {path for path in listed if (ROOT / path).exists()}


def test_the_wheel_holds_every_source_file(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    wanted = {path for path in sources() if Path(path).suffix not in NOT_INSTALLED}
    wanted |= {path[: -len(".pyx")] + SUFFIX for path in sources() if path.endswith(".pyx")}
    assert names == wanted


def test_a_wheel_is_not_built_where_imports_compile(tmp_path, monkeypatch):
    """Two mesons at once in the editable install's folder: the second one ended with an error."""
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    unseeded = _build_folder()
    assert unseeded.is_relative_to(tmp_path / "cache")
    assert not list(unseeded.iterdir())
    (tmp_path / "build" / "part").mkdir(parents=True)
    (tmp_path / "build" / "part" / "object.o").write_text("compiled")
    assert _build_folder() == tmp_path / "wheel-build"
    (tmp_path / "build" / "part" / "object.o").write_text("compiled again")
    assert (_build_folder() / "part" / "object.o").read_text() == "compiled"


def test_of_another_users_clone_the_wheel_is_built_in_the_cache(tmp_path, monkeypatch):
    """What root built there was root's afterwards, and its owner could not compile any more."""
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "object.o").write_text("compiled")
    monkeypatch.setattr(os, "geteuid", lambda: (tmp_path / "build").stat().st_uid + 1)
    folder = _build_folder()
    assert folder.is_relative_to(tmp_path / "cache")
    assert (folder / "object.o").read_text() == "compiled"


def test_the_wheel_says_what_it_is(wheel):
    archive = zipfile.ZipFile(wheel)
    (path,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = archive.read(path).decode()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"\nVersion: {project['version']}\n" in metadata
    assert "\nLicense-Expression: BSD-3-Clause\n" in metadata
    for requirement in project["dependencies"]:
        assert f"\nRequires-Dist: {requirement.replace(' ', '')}\n" in metadata.replace(" >=", ">=")
    assert any(name.endswith("licenses/LICENSE") for name in archive.namelist())
    assert wheel.name.split("-")[2] == f"cp{sys.version_info.major}{sys.version_info.minor}"


def test_an_installed_package_works(fresh):
    script = """
import pyvirtnet, sys
with pyvirtnet.open("sim:loopback") as port:
    assert port.send_burst([b"x" * 60, b"y" * 9014]) == 2
    assert [len(frame) for frame in port.recv_burst(8)] == [60, 9014]
print(pyvirtnet.__file__)
"""
    where = run(fresh, "-c", script, cwd="/").strip()
    assert Path(where).is_relative_to(fresh.parent.parent)


def test_an_installed_package_brings_its_command(fresh):
    assert run(fresh.parent / "pyvirtnet", "--version") == f"pyvirtnet {pyvirtnet.__version__}\n"


def test_every_installed_module_can_be_imported(fresh, wheel):
    names = zipfile.ZipFile(wheel).namelist()
    modules = [
        name.removesuffix(SUFFIX).removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name in names
        if name.endswith((".py", SUFFIX))
    ]
    run(fresh, "-c", "\n".join(f"import {name}" for name in sorted(modules)), cwd="/")


def test_type_checkers_see_the_installed_package(fresh, tmp_path):
    (tmp_path / "user.py").write_text(
        """
import numpy as np
from numpy.typing import NDArray
import pyvirtnet

with pyvirtnet.open("0000:00:04.0", ring_size=256, features=["-mrg_rxbuf"]) as port:
    burst = port.recv_burst(64, timeout=None)
    heads: NDArray[np.uint8] = burst.heads
    frame: pyvirtnet.Frame = burst[0]
    rest: pyvirtnet.RxBurst = burst[port.send_burst(burst) :]
    picked: pyvirtnet.RxBurst = burst[burst.lengths > 100][[0, 1]][np.arange(2)]
    content: bytes = bytes(frame) + b"".join(map(bytes, frame.frags))
    tx: pyvirtnet.TxBurst = port.alloc_burst(64, 60)
    row: NDArray[np.uint8] = tx[3]
    sent: int = port.send_burst([content, heads[0], frame, (b"a", content)])
    frames: int = port.stats.rx_frames
"""
    )
    command = (sys.executable, "-m", "mypy", "--strict", "--python-executable", fresh, "user.py")
    run(*command, cwd=tmp_path)


def test_the_tests_run_on_an_editable_install():
    """What is tested is what lies here, rebuilt when it changes."""
    assert Path(pyvirtnet.__file__).parent == ROOT / "pyvirtnet"
    origin = importlib.metadata.distribution("pyvirtnet").read_text("direct_url.json")
    assert origin is not None
    assert json.loads(origin)["dir_info"] == {"editable": True}


def test_the_unbuilt_source_says_that_it_is(monkeypatch):
    def without(name, package):
        raise ModuleNotFoundError("No module named 'pyvirtnet._bpf'", name="pyvirtnet._bpf")

    monkeypatch.setattr(pyvirtnet, "import_module", without)
    with pytest.raises(ModuleNotFoundError) as caught:
        pyvirtnet.__getattr__("Filter")
    assert "unbuilt" in caught.value.__notes__[0]


def test_errors_name_commands_as_they_are_installed(monkeypatch):
    monkeypatch.setattr("pyvirtnet.errors._COMMANDS", "pyvirtnet ")
    error = pyvirtnet.NotBound("cannot open it", "why", "tools/bind 0000:00:04.0")
    assert error.mend == "pyvirtnet bind 0000:00:04.0"
    assert str(error).endswith("mend: pyvirtnet bind 0000:00:04.0")
    path = "/srv/tools/venv/bin/python -m pip install scapy, setfacl tools/x"
    assert pyvirtnet.NotBound("it", "why", path).mend.startswith("/srv/tools/venv")


def test_where_there_are_doors_errors_name_them(monkeypatch, tmp_path):
    monkeypatch.setattr("pyvirtnet.errors.__file__", str(tmp_path / "pyvirtnet/errors.py"))
    monkeypatch.delenv("PYVIRTNET_PROJECT", raising=False)
    assert not errors._has_doors()
    monkeypatch.setenv("PYVIRTNET_PROJECT", "/clone")
    assert errors._has_doors()
    monkeypatch.delenv("PYVIRTNET_PROJECT")
    monkeypatch.undo()
    assert errors._has_doors()


def _set_up(project, stage):
    """Stages of the set-up in a clone whose programs only write down how they were called."""
    log = project / "log"
    log.write_text("")
    code = '. "$project/tools/_setup.sh"; base=$project/fake; virtual_environment "$1"'
    subprocess.run(
        ["sh", "-c", code, f"{project}/tools/demo", stage],
        env={**os.environ, "project": str(project), "LOG": str(log)},
        check=True,
        timeout=60,
    )
    return log.read_text().splitlines()


def test_a_clone_in_a_folder_with_a_space_is_set_up_once_and_anew_where_it_was_moved(tmp_path):
    """Each call set it up again, and wrote beside the clone; a moved one failed for ever."""
    project = tmp_path / "my clone"
    shutil.copytree(ROOT / "tools", project / "tools")
    shutil.copy(ROOT / "pyproject.toml", project)
    fake = project / "fake"
    fake.write_text('#!/bin/sh\necho "$*" >>"$LOG"; echo "pip 1 from ${0%/bin/*}/lib"\n')
    fake.chmod(0o755)
    (project / ".venv/bin").mkdir(parents=True)
    for name in ("python", "pip"):
        shutil.copy(fake, project / ".venv/bin" / name)
    for stage in ("package", "bench"):
        assert any("--editable" in line for line in _set_up(project, stage))
        assert _set_up(project, stage) == []
    assert [path.name for path in tmp_path.iterdir()] == ["my clone"]
    moved = tmp_path / "moved"
    project.rename(moved)
    (moved / ".venv/bin/pip").write_text(f"#!/bin/sh\necho 'pip 1 from {project}/.venv/lib'\n")
    said = _set_up(moved, "package")
    assert f"-m venv --clear {moved}/.venv" in said
    assert any("--editable" in line for line in said)
