"""The guest's image: kernel, initial file system and root disk, built from a recipe, cached."""

from __future__ import annotations

import fcntl
import hashlib
import json
import lzma
import os
import platform
import shutil
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..errors import Error, NoSuchDevice
from ._vm_cpio import Archive

DEFAULT = "debian12"  # the recipe that others add to
SUITE = "bookworm"
_XZ = b"\xfd7zXZ"
_FORMAT = "1"  # part of the cache key; raised when this file builds something else of a recipe
_DISK_SIZE = "2G"  # sparse
_SYSTEM_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


@dataclass(frozen=True)
class Image:
    """A built guest image; `python` is the version of its python3, as "3.11".

    `headers` are its Python's, where the recipe has them: a package can be compiled for it.
    """

    kernel: Path
    initrd: Path
    disk: Path
    python: str
    headers: Path


def project() -> Path:
    """The clone: tools/ names it, and else it is where this file is."""
    path = Path(os.environ.get("PYVIRTNET_PROJECT") or Path(__file__).parents[2]).resolve()
    if not (path / "vm-images").is_dir():
        raise NoSuchDevice(
            "no guest recipe",
            f"{path} has no vm-images/",
            "git clone pyvirtnet, and take the command from its folder tools",
        )
    return path


def cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    path = Path(base) / "pyvirtnet"
    what, mend = "cannot keep what is built for the guest", "XDG_CACHE_HOME=FOLDER, one of yours"
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Error(what, f"{path} can't be made: {error.strerror}", mend) from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise Error(what, f"{path} is not writable for this user", mend)
    return path


def say(text: str) -> None:
    print(f"vm: {text}", file=sys.stderr, flush=True)


def find_program(name: str, package: str) -> str:
    found = shutil.which(name, path=_SYSTEM_PATH)
    if found is None:
        raise Error(f"cannot run {name}", "it is not installed", f"apt-get install {package}")
    return found


@contextmanager
def exclusive(name: str) -> Iterator[None]:
    """One builder at a time; the others wait and find its work done."""
    with open(cache() / f"{name}.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another process builds the {name}; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def image(addition: str = "") -> Image:
    """The image of the present recipe, built if it is not in the cache.

    `addition` names a folder of vm-images/ that adds to debian12's recipe: more packages, modules
    and a customize script; a suite, where it is another one.
    """
    recipes = [project() / "vm-images" / name for name in (DEFAULT, addition) if name]
    recipes = list(dict.fromkeys(recipes))
    if not recipes[-1].is_dir():
        known = ", ".join(sorted(path.name for path in recipes[0].parent.iterdir()))
        raise Error(f"there is no image {addition}", f"known are {known}", "take one of these")
    folder = cache() / f"image-{_key(recipes)}"
    if not folder.is_dir():
        with exclusive("image"):
            if not folder.is_dir():
                _build(recipes, folder)
    facts = json.loads((folder / "facts.json").read_text())
    boot = folder / "vmlinux", folder / "initrd.cpio", folder / "root.ext4"
    return Image(*boot, facts["python"], folder / "include")


def _key(recipes: list[Path]) -> str:
    digest = hashlib.sha256(f"{_FORMAT} {platform.machine()}\n".encode())
    for path in (path for recipe in recipes for path in sorted(recipe.iterdir())):
        content = path.read_bytes()
        digest.update(f"{path.name} {path.stat().st_mode & 0o111} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


def _build(recipes: list[Path], folder: Path) -> None:
    start = time.monotonic()

    def stage(text: str) -> None:
        say(f"[{time.monotonic() - start:5.1f} s] {text}")

    for left in folder.parent.glob("image-*.part"):  # of a build that was killed
        _as_root("rm", "-rf", str(left))
    part = folder.with_name(folder.name + ".part")
    part.mkdir()
    root = part / "root"
    try:
        stage(f"installing Debian {_suite(recipes)} with mmdebstrap (a minute or two)")
        _debootstrap(recipes, root, stage)
        stage("unpacking the kernel and packing the initial file system")
        facts = _boot_files(recipes, root, part)
        _keep_headers(root, part / "include")
        stage("writing the root disk")
        disk = part / "root.ext4"
        mke2fs = find_program("mke2fs", "e2fsprogs")
        options = ["-q", "-t", "ext4", "-O", "^has_journal", "-d", str(root)]
        _as_root(mke2fs, *options, str(disk), _DISK_SIZE)
        _as_root("chown", f"{os.getuid()}:{os.getgid()}", str(disk))
        _as_root("rm", "-rf", str(root))
        (part / "facts.json").write_text(json.dumps(facts))
        part.rename(folder)
    except BaseException:
        _as_root("rm", "-rf", str(part))
        raise
    stage(f"the image is ready: {folder}")


def _as_root(*command: str) -> None:
    """Runs what keeps the guest's owners and modes, which an ordinary user can't write."""
    prefix = [] if os.geteuid() == 0 else ["sudo"]
    try:
        subprocess.run([*prefix, *command], check=True, stdout=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError) as error:
        raise Error(
            f"cannot run {command[0]}", str(error), "run as root, or as a user who may use sudo"
        ) from error


def _words(recipes: list[Path], name: str) -> list[str]:
    """What the recipes' files of that name list, comments left out."""
    files = [recipe / name for recipe in recipes if (recipe / name).exists()]
    lines = (line.strip() for file in files for line in file.read_text().splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _suite(recipes: list[Path]) -> str:
    return [SUITE, *_words(recipes, "suite")][-1]


def _debootstrap(recipes: list[Path], root: Path, stage: Callable[[str], None]) -> None:
    packages = _words(recipes, "packages")
    command = [] if os.geteuid() == 0 else ["sudo"]
    command += [find_program("mmdebstrap", "mmdebstrap"), "--variant=minbase", "--mode=root"]
    command += ["--include=" + ",".join(packages)]
    command += [f"--dpkgopt=path-exclude={path}" for path in _words(recipes, "exclude")]
    command += ['--aptopt=Acquire::Languages "none"', "--dpkgopt=force-unsafe-io"]
    hooks = [recipe / "customize" for recipe in recipes if (recipe / "customize").exists()]
    command += [f'--customize-hook={hook} "$1"' for hook in hooks]
    command += [_suite(recipes), str(root)]
    printed: deque[str] = deque(maxlen=15)
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            printed.append(line.rstrip())
            if line.startswith("I: ") and "--" not in line:  # what mmdebstrap is at
                stage(f"  {line[3:].rstrip()}")
    if process.returncode:
        raise Error(
            "the guest image could not be built",
            f"mmdebstrap ended with status {process.returncode}:\n" + "\n".join(printed),
            "see that this machine reaches its Debian mirror (apt-get update), then try again",
        )


def _keep_headers(root: Path, out: Path) -> None:
    """Python's headers, if the guest has them, and where Debian keeps what is the processor's."""
    for folder in (root / "usr/include").glob("**/python3.*"):
        shutil.copytree(folder, out / folder.relative_to(root / "usr/include"))


def _boot_files(recipes: list[Path], root: Path, out: Path) -> dict[str, str]:
    """Writes vmlinux and initrd.cpio; says what the rest must know of the guest."""
    (compressed,) = (root / "boot").glob("vmlinuz-*")
    (out / "vmlinux").write_bytes(_decompress(compressed.read_bytes()))
    modules = root / "usr/lib/modules" / compressed.name.removeprefix("vmlinuz-")
    order = _load_order(modules, _words(recipes, "modules"))
    with open(out / "initrd.cpio", "wb") as file, Archive(file) as archive:
        for name in ("dev", "proc", "root", "payload/root", "payload/run"):
            archive.folder(name)
        archive.file("bin/busybox", (root / "bin/busybox").read_bytes(), 0o755)
        for applet in ("sh", "mount", "umount", "insmod", "cp", "sleep", "switch_root", "poweroff"):
            archive.link(f"bin/{applet}", "busybox")
        for path in order:
            packed = path.suffix == ".xz"  # which busybox's insmod can't read
            content = lzma.decompress(path.read_bytes()) if packed else path.read_bytes()
            archive.file(f"modules/{path.name.removesuffix('.xz')}", content)
        names = (f"{path.name.removesuffix('.xz')}\n" for path in order)
        archive.file("modules/order", "".join(names).encode())
        archive.file("init", (recipes[0] / "initrd-init").read_bytes(), 0o755)
    python = os.readlink(root / "usr/bin/python3").removeprefix("python")
    return {"python": python, "kernel": modules.name}


def _decompress(bzimage: bytes) -> bytes:
    """The ELF kernel in a bzImage: QEMU starts it directly, and no guest has to unpack it.

    Linux's boot protocol: sectors of set-up code at 0x1f1, payload offset and length at 0x248.
    A kernel that is not packed with xz is left to the guest, which unpacks the others quickly.
    """
    offset, length = struct.unpack_from("<II", bzimage, 0x248)
    start = (bzimage[0x1F1] + 1) * 512 + offset
    payload = bzimage[start : start + length]
    if not payload.startswith(_XZ):
        return bzimage
    return lzma.LZMADecompressor().decompress(payload)


def _load_order(modules: Path, wanted: list[str]) -> list[Path]:
    """The module files to load for `wanted`, each after what it depends on."""
    needs: dict[str, list[str]] = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        path, _, depends = line.partition(":")
        needs[path] = depends.split()
    by_name = {Path(path).name.split(".")[0].replace("-", "_"): path for path in needs}
    builtin = (modules / "modules.builtin").read_text()
    order: list[str] = []
    for name in wanted:
        if f"/{name}.ko" in builtin:
            continue
        path = by_name[name.replace("-", "_")]
        for module in [*reversed(needs[path]), path]:  # modules.dep: the deepest comes last
            if module not in order:
                order.append(module)
    return [modules / path for path in order]
