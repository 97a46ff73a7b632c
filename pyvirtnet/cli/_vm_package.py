"""The package for the guest: a wheel of the clone, unpacked, as an archive of its file system."""

from __future__ import annotations

import compileall
import hashlib
import os
import py_compile
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

from ..errors import Error
from ._vm_cpio import Archive
from ._vm_cross import recompile
from ._vm_image import Image, cache, exclusive, project, say

OURS = f"{sys.version_info.major}.{sys.version_info.minor}"
_COMMAND = b"""#!/usr/bin/python3
import sys
from pyvirtnet.cli.main import main
sys.exit(main())
"""
_KEPT = 8  # packages of earlier states of the sources
_KEPT_BUILDS = 3  # build folders, of so many clones


def payload(image: Image) -> Path:
    """The archive for the present sources, built if it is not in the cache."""
    if image.python != OURS and not image.headers.is_dir():
        raise Error(
            "the guest cannot import this package",
            f"it is built for Python {OURS}, and the guest has Python {image.python}",
            f"rm -rf .venv, apt-get install python{image.python}-venv python{image.python}-dev, "
            "then run this again; or --image debian13, which any Python can build for",
        )
    other = "" if image.python == OURS else f"-{image.python}"
    archive = cache() / f"package-{_key()}{other}.cpio"
    if archive.exists():
        archive.touch()
    else:
        with exclusive("package"):
            if not archive.exists():
                _build(archive, image)
    return archive


def _sources() -> Iterator[Path]:
    root = project()
    for name in ("pyproject.toml", "meson.build", "README.md", "LICENSE"):
        if (root / name).exists():
            yield root / name
    for path in sorted((root / "pyvirtnet").rglob("*")):
        if path.is_file() and path.parent.name != "__pycache__":
            yield path


def _key() -> str:
    digest = hashlib.sha256(sys.version.encode() + _COMMAND)
    for path in _sources():
        content = path.read_bytes()
        digest.update(f"{path.relative_to(project())} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


def _build(archive: Path, image: Image) -> None:
    start = time.monotonic()
    say("building the package for the guest")
    build = _build_folder()
    with tempfile.TemporaryDirectory(prefix="pyvirtnet-wheel-") as name:
        folder = Path(name)
        (wheel,) = _wheel(folder, build).glob("*.whl")
        tree = folder / "tree"
        with zipfile.ZipFile(wheel) as file:
            file.extractall(tree)
        if image.python == OURS:
            compileall.compile_dir(
                tree,
                quiet=1,
                stripdir=str(tree),
                invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
            )
        else:
            recompile(tree, build, image.python, image.headers)
        part = archive.with_suffix(".part")
        with open(part, "wb") as out, Archive(out) as writer:
            writer.tree(f"payload/root/usr/local/lib/python{image.python}/dist-packages", tree)
            writer.file("payload/root/usr/local/bin/pyvirtnet", _COMMAND, 0o755)
        part.rename(archive)
    _prune("package-*.cpio", _KEPT)
    _prune("build-*", _KEPT_BUILDS)
    say(f"the package is ready ({time.monotonic() - start:.1f} s)")


def _prune(pattern: str, kept: int) -> None:
    """Of what the cache holds of a kind, only the newest stay."""
    for old in sorted(cache().glob(pattern), key=_age)[:-kept]:
        if old.is_dir():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.unlink(missing_ok=True)


def _age(path: Path) -> float:
    return path.stat().st_mtime


def _build_folder() -> Path:
    """One for wheels alone, so that only what has changed is compiled.

    Not that of the editable install, which every import brings up to date while a wheel is built;
    what that has compiled is taken over once.
    """
    editable = Path(sys.prefix) / "build"
    if editable.is_dir() and editable.stat().st_uid == os.geteuid():
        build = Path(sys.prefix) / "wheel-build"
    else:
        build = cache() / f"build-{hashlib.sha256(bytes(project())).hexdigest()[:8]}"
    if editable.is_dir() and not build.is_dir():
        part = build.with_name(f"{build.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(editable, part, symlinks=True)
        part.rename(build)
    build.mkdir(exist_ok=True)
    os.utime(build)  # the newest one, and not to be pruned
    return build


def _wheel(folder: Path, build: Path) -> Path:
    """Builds the wheel into `folder`."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps"]
    command += ["--disable-pip-version-check", "--wheel-dir", str(folder)]
    command += [f"--config-settings=build-dir={build}", str(project())]
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    result = subprocess.run(
        command, check=False, env={**os.environ, "PATH": tools}, capture_output=True, text=True
    )
    if result.returncode:
        raise Error(
            "the package for the guest could not be built",
            result.stdout + result.stderr,
            "correct the source; pip install --no-build-isolation -e . shows the same",
        )
    return folder
