"""tools/vm as a user calls it: output, arguments, exit status, time-out, and what it refuses."""

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from needs import needs_guest

from pyvirtnet.cli import vm
from pyvirtnet.cli._vm_cpio import Archive
from pyvirtnet.cli._vm_image import _load_order, cache
from pyvirtnet.cli._vm_machine import Machine
from pyvirtnet.cli._vm_monitor import Monitor
from pyvirtnet.cli._vm_package import _prune
from pyvirtnet.errors import Error

VM = [sys.executable, "-P", "-m", "pyvirtnet.cli.vm"]

# Writes its arguments, each ended by NUL, to the shared folder; both streams; a status of its own.
PROBE = """
printf '%s\\0' "$@" >/mnt/share/arguments
seq 1 20000; echo to-stderr >&2
touch /mnt/project/x 2>/mnt/share/refusal
exit 42
"""
ARGUMENTS = ["a b", "", "it's", '"quoted"', "$HOME `id` \\", "line\nbreak", "*", "--", "-x", "ü"]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*VM, "run", *words], check=False, capture_output=True, text=True)


@needs_guest
def test_streams_arguments_status_and_folders(tmp_path: Path) -> None:
    share = tmp_path / "with, comma"
    share.mkdir()
    command = ["sh", "-c", PROBE, "probe", *ARGUMENTS]
    result = run("--ports", "1", "--share", str(share), "--", *command)
    assert result.returncode == 42, result.stderr
    assert result.stdout == "".join(f"{number}\n" for number in range(1, 20001))
    assert result.stderr.endswith("to-stderr\n")
    assert "0000:00:04.0 52:54:00:00:00:01" in result.stderr
    assert (share / "arguments").read_text().split("\0")[:-1] == ARGUMENTS
    assert "Read-only file system" in (share / "refusal").read_text()


@needs_guest
def test_an_image_as_json() -> None:
    command = [*VM, "build", "--json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    assert found["image"] == "debian12"
    assert Path(found["folder"]).is_dir()


@needs_guest
def test_a_hang_ends_with_a_time_out_and_the_console_also_as_json() -> None:
    script = "echo begun; echo err >&2; echo lost at sea >/dev/console; sleep 1000"
    result = run("--ports", "0", "--timeout", "15", "--json", "--", "sh", "-c", script)
    assert result.returncode == 124
    found = json.loads(result.stdout)
    failure = found.pop("failure")
    assert found == {"status": 124, "stdout": "begun\n", "stderr": "err\n"}
    assert "time-out: the command did not end within 15 s" in failure
    assert failure.endswith("lost at sea")
    assert failure in result.stderr


@needs_guest
def test_a_guest_that_dies_before_the_command_is_booted_once_more() -> None:
    with subprocess.Popen(
        [*VM, "run", "--ports", "0", "--json", "--", "sh", "-c", "echo up; exit 3"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as tool:
        qemu = first_child(tool, "qemu-system")
        words = Path(f"/proc/{qemu}/cmdline").read_text().split("\0")
        (console,) = (Path(word.split("path=")[1]) for word in words if "id=console" in word)
        while not console.exists() or console.stat().st_size == 0:
            assert tool.poll() is None
        os.kill(qemu, signal.SIGKILL)
        out, error = tool.communicate(timeout=280)
    assert tool.returncode == 3, error
    assert json.loads(out) == {"status": 3, "stdout": "up\n", "stderr": "", "failure": None}
    assert "QEMU was ended by SIGKILL" in error
    assert "booting it once more" in error


def first_child(process: subprocess.Popen[str], name: str) -> int:
    """The process that `process` starts under `name`."""
    while process.poll() is None:
        for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            with suppress(OSError):  # a child that has ended since
                program = Path(f"/proc/{pid}/cmdline").read_text().partition("\0")[0]
                if Path(program).name.startswith(name):
                    return int(pid)
    raise AssertionError(f"it ended without {name}")


@needs_guest
def test_a_kernel_panic_is_called_one() -> None:
    result = run("--ports", "0", "--", "sh", "-c", "echo c >/proc/sysrq-trigger; sleep 1000")
    assert result.returncode == 124
    assert "vm: kernel panic" in result.stderr
    assert "sysrq_handle_crash" in result.stderr


@needs_guest
def test_what_qemu_refuses_is_shown() -> None:
    result = run("--port-opts", "no_such_option=1", "--", "true")
    assert result.returncode == 125
    assert "no_such_option" in result.stderr


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--ports", "17"], "--ports 0 to 16"),
        (["--ports", "-1"], "--ports 0 to 16"),
        (["--queues", "2"], "add --link tap"),
        (["--share", "/no/such/folder"], "mkdir -p /no/such/folder"),
    ],
)
def test_refusals_name_the_mend(
    words: list[str], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert vm.main(["run", *words, "--", "true"]) == 125
    assert part in capsys.readouterr().err


def test_no_command_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        vm.main(["run", "--ports", "1", "--"])
    assert caught.value.code == 2
    assert "no command" in capsys.readouterr().err


def test_a_command_that_is_not_behind_two_dashes_is_shown_there(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as caught:
        vm.main(["run", "--ports", "1", "sleep", "1 h"])
    assert caught.value.code == 2
    assert "vm run [OPTIONS] -- sleep '1 h'" in capsys.readouterr().err


def test_output_that_a_full_disk_does_not_take() -> None:
    with open("/dev/full", "wb") as full, pytest.raises(Error, match="No space left on device"):
        vm._to(full.fileno())(b"output")


def test_every_pair_of_ports_shares_a_cable_and_slots_count_up() -> None:
    words = Machine(ports=4, port_opts="mrg_rxbuf=off").arguments(Path("/x"))
    cables = [word for word in words if word.startswith("hubport")]
    assert [cable.rpartition("=")[2] for cable in cables] == ["0", "0", "1", "1"]
    nics = [word for word in words if word.startswith("virtio-net-pci")]
    assert [nic.split("addr=")[1].split(",")[0] for nic in nics] == ["0x4", "0x5", "0x6", "0x7"]
    assert all(nic.endswith(",iommu_platform=on,mrg_rxbuf=off") for nic in nics)
    assert words.index("intel-iommu,intremap=on,device-iotlb=on") < words.index(nics[0])


def test_without_an_iommu_nothing_speaks_of_one() -> None:
    assert "iommu" not in " ".join(Machine(iommu="none").arguments(Path("/x")))


def test_dgram_ports_have_both_ends_in_the_folder() -> None:
    words = " ".join(Machine(ports=1, link="dgram").arguments(Path("/x")))
    assert "local.path=/x/port0.guest" in words
    assert "remote.path=/x/port0.host" in words


def entries(archive: bytes) -> Iterator[tuple[str, int, bytes]]:
    """Name, mode and content of what a newc archive holds, as the kernel reads it."""
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        name_end = at + 110 + fields[11]
        start = name_end + -name_end % 4
        name = archive[at + 110 : name_end - 1].decode()
        if name == "TRAILER!!!":
            return
        yield name, fields[1], archive[start : start + fields[6]]
        at = start + fields[6] + -fields[6] % 4


def test_an_archive_has_parents_first_and_everything_aligned() -> None:
    archive = io.BytesIO()
    with Archive(archive) as out:
        out.file("a/b/script", b"content", 0o755)
        out.file("a/empty", b"")
        out.link("a/link", "b/script")
    assert list(entries(archive.getvalue())) == [
        ("a", 0o040755, b""),
        ("a/b", 0o040755, b""),
        ("a/b/script", 0o100755, b"content"),
        ("a/empty", 0o100644, b""),
        ("a/link", 0o120777, b"b/script"),
    ]


def test_modules_load_after_what_they_need_and_built_in_ones_do_not(tmp_path: Path) -> None:
    (tmp_path / "modules.dep").write_text(
        "k/ext4.ko: k/jbd2.ko k/crc16.ko\nk/jbd2.ko:\nk/crc16.ko:\nk/virtio-blk.ko: k/virtio.ko\n"
        "k/virtio.ko:\n"
    )
    (tmp_path / "modules.builtin").write_text("kernel/fs/ramfs.ko\n")
    order = _load_order(tmp_path, ["virtio_blk", "ramfs", "ext4"])
    assert [path.name for path in order] == [
        "virtio.ko",
        "virtio-blk.ko",
        "crc16.ko",
        "jbd2.ko",
        "ext4.ko",
    ]


def test_a_cache_that_cannot_be_made_is_an_error_with_its_mend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "cache"))
    with pytest.raises(Error, match="Not a directory") as caught:
        cache()
    assert "XDG_CACHE_HOME" in caught.value.mend


def test_the_cache_keeps_the_newest_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for age, name in enumerate(["build-c", "build-a", "build-b"]):
        (cache() / name / "lib").mkdir(parents=True)
        os.utime(cache() / name, (1000 - age, 1000 - age))
        (cache() / f"package-{name}.cpio").touch()
        os.utime(cache() / f"package-{name}.cpio", (age, age))
    _prune("build-*", 1)
    _prune("package-*.cpio", 2)
    left = ["build-c", "package-build-a.cpio", "package-build-b.cpio"]
    assert sorted(path.name for path in cache().iterdir()) == left


def test_a_guest_may_ask_for_little_of_its_qemu() -> None:
    monitor = Monitor(Path("nowhere"))
    assert monitor.answer(b'{"execute": "qu') == b""
    for request in (b'it"}\n', b"[]\n", b"{\n", b'{"fail": "a b"}\n', b'{"pause": "long"}\n'):
        (reply,) = monitor.answer(request).splitlines()
        assert json.loads(reply)["error"]["desc"]
