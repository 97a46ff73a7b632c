"""Extension modules for a guest whose Python is another one: compiled again with its headers."""

from __future__ import annotations

import json
import shlex
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..errors import Error


def recompile(tree: Path, build: Path, python: str, headers: Path) -> None:
    """Replace the extension modules of an unpacked wheel by ones for Python `python`.

    Cython's C fits every Python: only the compiler's commands, which meson wrote down when the
    wheel was built, get other headers. What has not changed since the last time is not compiled.
    """
    kept = build / f"python{python}"
    kept.mkdir(exist_ok=True)
    tag = f"cpython-{python.replace('.', '')}-x86_64-linux-gnu"
    jobs = []
    for module in sorted(tree.rglob("*.cpython-*.so")):
        name = module.name.partition(".")[0]
        jobs.append((name, module, kept / f"{name}.{tag}.so"))
    commands = _commands(build)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda job: _compile(build, commands[job[0]], headers, job[2]), jobs))
    for _, module, fresh in jobs:
        module.unlink()
        module.with_name(fresh.name).write_bytes(fresh.read_bytes())


def _commands(build: Path) -> dict[str, list[str]]:
    """The compiler's command for each module's C file."""
    found = {}
    for entry in json.loads((build / "compile_commands.json").read_text()):
        name = Path(entry["file"]).name
        if name.endswith(".pyx.c"):
            found[name.removesuffix(".pyx.c")] = shlex.split(entry["command"])
    return found


def _compile(build: Path, command: list[str], headers: Path, out: Path) -> None:
    source = build / command[-1]
    if out.exists() and out.stat().st_mtime > source.stat().st_mtime:
        return
    (python,) = headers.glob("python3.*")
    words = [word for word in command[:-1] if not _is_python(word)]
    for option in ("-o", "-MF", "-MQ"):  # meson's objects are for the Python here
        del words[words.index(option) : words.index(option) + 2]
    words = [word for word in words if word not in ("-c", "-MD")]
    words += [f"-I{python}", f"-I{headers}", "-shared", "-o", str(out), str(source)]
    done = subprocess.run(words, cwd=build, check=False, capture_output=True, text=True)
    if done.returncode:
        mend = "correct the source; the compiler's message tells where"
        raise Error(f"cannot compile {source.name} for the guest", done.stderr, mend)


def _is_python(word: str) -> bool:
    """An option that names this Python's headers."""
    return word.startswith("-I") and Path(word).name.startswith("python3.")
