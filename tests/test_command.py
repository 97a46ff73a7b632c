"""The command `pyvirtnet`: finding subcommands, exit statuses, completion, wrong usage."""

import json
import os
import pkgutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import pytest

import pyvirtnet
from pyvirtnet import errors
from pyvirtnet.cli import _command, completion, main
from pyvirtnet.cli.main import COMMANDS

ROOT = Path(__file__).parent.parent


def test_the_package_brings_the_command() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert pkgutil.resolve_name(scripts["pyvirtnet"]) is main.main


def test_a_subcommand_runs_with_what_follows_it(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["pktgen", "loop", "sim:loopback", "sim:loopback", "--count", "5", "--json"]
    assert main.main(words) == 0
    assert '"received": 5' in capsys.readouterr().out


def test_python_m_is_the_same() -> None:
    command = [sys.executable, "-P", "-m", "pyvirtnet", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"pyvirtnet {pyvirtnet.__version__}\n"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {name} " in out for name in COMMANDS)
    assert "exit status: 0" in out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "usage: pyvirtnet COMMAND"),
        (["pktgne"], "no command 'pktgne', did you mean 'pktgen'?"),
        (["--jsno"], "no option '--jsno'"),
        (["xyzzy"], "no command 'xyzzy' ("),
    ],
)
def test_wrong_usage_is_one_line(
    capsys: pytest.CaptureFixture[str], words: list[str], line: str
) -> None:
    assert main.main(words) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert line in err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main.main([name, "--help"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith("usage: ")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_answers_wrong_usage_in_one_line(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main.main([name, "--no-such-option"])
    out, err = capsys.readouterr()
    assert (end.value.code, out, err.count("\n")) == (2, "", 1)


def test_every_door_is_a_command() -> None:
    doors = {path.name for path in (ROOT / "tools").iterdir() if not path.name.startswith("_")}
    of_the_clone = {"pyvirtnet", "test", "conformance"}
    assert doors - of_the_clone <= set(COMMANDS)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.NoIommu("x"), 3),
        (errors.NoSuchDevice("x"), 3),
        (errors.DeviceBroken("x"), 1),
        (errors.InterfaceInUse("x"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_an_error_has_its_exit_status(error: BaseException, status: int) -> None:
    def work() -> int:
        raise error

    assert _command.run("x", work) == status


@pytest.mark.parametrize(("door", "mend"), [("tools/", "tools/bind 1"), (None, "pyvirtnet bind 1")])
def test_a_mend_is_a_command_that_the_user_has(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    door: str | None,
    mend: str,
) -> None:
    monkeypatch.delenv("PYVIRTNET_DOOR", raising=False)
    if door:
        monkeypatch.setenv("PYVIRTNET_DOOR", door)

    def work() -> int:
        raise errors.NotBound("not bound", mend="tools/bind 1")

    assert _command.run("pktgen", work) == 3
    err = capsys.readouterr().err
    assert err.endswith(f"mend: {mend}\n")
    assert err.startswith("tools/pktgen:" if door else "pyvirtnet pktgen:")


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    command = f"{sys.executable} -P -m pyvirtnet completion bash | head -n 1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    assert done.returncode in (0, 128 + signal.SIGPIPE)


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["completion", "bash"]])
def test_a_reader_that_is_gone_is_no_traceback(words: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-P", "-m", "pyvirtnet", *words]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


@pytest.mark.parametrize(
    ("module", "line", "mend"),
    [
        ("pyudev", "cannot import pyudev: it is not installed", "-m pip install pyudev"),
        ("pyvirtnet._burst", "the source of pyvirtnet, unbuilt", "go to another folder"),
    ],
)
def test_what_cannot_be_imported_is_named(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    module: str,
    line: str,
    mend: str,
) -> None:
    def without(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    monkeypatch.setattr(main, "import_module", without)
    assert main.main(["pktgen", "--help"]) == 3
    first, second = capsys.readouterr().err.splitlines()
    assert line in first
    assert mend in second


@contextmanager
def full_disk() -> Iterator[None]:
    """As stdout."""
    with open("/dev/full", "w") as full, redirect_stdout(full):
        yield


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
@pytest.mark.parametrize("words", ["--help", "pktgen tx --help", "doctor", "top 1 --count 1"])
def test_a_stream_that_has_not_all_letters(words: str, encoding: str) -> None:
    """Help and mends ended in a traceback."""
    command = [sys.executable, "-P", "-m", "pyvirtnet", *words.split()]
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert b"Error" not in done.stderr
    assert done.stdout + done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_help_that_a_full_disk_does_not_take_is_one_line(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end, full_disk():
        main.main([name, "--help"])
    assert end.value.code == 1
    assert capsys.readouterr().err.endswith(": cannot write its output: No space left on device\n")


@pytest.mark.parametrize(
    "command",
    [
        "--help",
        "--version",
        "doctor",
        "status --json",
        "completion zsh",
        "top --count 1 --interval 0.01",
        "top --count 1 --interval 0.01 --json",
        "pktgen tx sim:loopback --count 1",
        "pktgen tx sim:loopback --dry-run",
        "fwd sim:loopback --mode drop --time 0.01",
        "capture sim:loopback -w /dev/null --time 0.01 --json",
        "capture sim:loopback -w - --time 0.01",
        "rfc2544 sim:loopback sim:loopback --tests loss --size 60 --time 0.01",
    ],
)
def test_a_full_disk_is_one_line(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with full_disk():
        assert main.main(command.split()) == 1
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("pyvirtnet")
    assert last.endswith(": cannot write its output: No space left on device")


def test_a_closed_stdout_is_nobody_who_reads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PYVIRTNET_RUN", str(tmp_path))
    monkeypatch.setattr(sys, "stdout", None)  # as Python sets it then
    assert main.main(["top", "--count", "1", "--interval", "0.01"]) == 1


@pytest.mark.parametrize(
    "command",
    [
        "pktgen loop sim:loopback sim:loopback --count 5 --json",
        "fwd sim:loopback --time 0.01 --json",
        "capture sim:loopback -w /dev/null --time 0.01 --json",
        "rfc2544 sim:loopback sim:loopback --tests loss --size 60 --time 0.01 --json",
    ],
)
def test_a_closed_stderr_takes_nothing_from_stdout(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stderr", None)  # as Python sets it then
    assert main.main(command.split()) == 0
    json.loads(capsys.readouterr().out)


def test_a_closed_stderr_is_not_replaced_by_stdout(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in ([], ["pktgne"], ["fwd", "sim:nowhere"]):
        monkeypatch.setattr(sys, "stderr", None)
        assert main.main(words) in (2, 3)
        assert capsys.readouterr().out == ""


def test_an_error_that_is_not_stdouts_is_not_taken_for_it() -> None:
    def work() -> int:
        raise PermissionError(13, "Permission denied", "/elsewhere")

    with pytest.raises(PermissionError, match="elsewhere"):
        _command.run("x", work)


# ---- completion --------------------------------------------------------------------------------


def completed(script: str, *words: str) -> set[str]:
    """What bash offers for the last of these words."""
    line = " ".join(f'"{word}"' for word in words)
    ask = f'COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _pyvirtnet; echo "${{COMPREPLY[@]}}"'
    done = subprocess.run(
        ["bash", "-c", f"{script}\n{ask}"], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return set(done.stdout.split())


def test_bash_completes_commands_subcommands_and_options() -> None:
    script = completion._bash(completion.words())
    assert completed(script, "pyvirtnet", "pk") == {"pktgen"}
    assert completed(script, "pyvirtnet", "") == set(COMMANDS)
    assert completed(script, "pyvirtnet", "pktgen", "l") == {"loop"}
    assert completed(script, "pyvirtnet", "pktgen", "loop", "--co") == {"--count"}
    assert completed(script, "pyvirtnet", "pktgen", "loop", "sim:loopback", "--si") == {"--size"}
    assert "--timeout" in completed(script, "pyvirtnet", "pktgen", "rx", "--")
    assert completed(script, "pyvirtnet", "restore", "--dr") == {"--dry-run"}
    assert completed(script, "pyvirtnet", "completion", "") >= {"bash", "zsh", "fish"}


def test_every_command_completes_its_options() -> None:
    found = completion.words()
    assert {name for (name, *_), options in list(found.items())[1:] if "--help" in options} == set(
        COMMANDS
    )
    assert {"--user", "--persist", "restore"} <= set(found[("bind",)])
    assert {"--frames", "--sizes"} <= set(found[("soak",)])
    assert {"--hotplug", "--share"} <= set(found["vm", "run"])
    assert {"--packed", "--json"} <= set(found["bench", "vs-dpdk"])
    assert "--seed" in found[("fuzz",)]
    assert "--json" in found[("demo",)]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_its_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert completion.main([shell]) == 0
    script = capsys.readouterr().out
    assert "pktgen" in script
    assert "timeout" in script


def test_a_door_says_its_own_name() -> None:
    command = [sys.executable, "-P", "-m", "pyvirtnet.cli.pktgen", "tx"]
    environment = os.environ | {"PYVIRTNET_DOOR": "tools/"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 2
    assert done.stderr.startswith("tools/pktgen tx: ")


def test_a_script_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert completion.main(["bash", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "shell": "bash",
        "script": completion._bash(completion.words()),
    }
