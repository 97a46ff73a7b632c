"""A running guest: starts QEMU, pumps the command's output, knows how it ended."""

from __future__ import annotations

import os
import selectors
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from ..errors import Error
from ._vm_cpio import Archive
from ._vm_image import Image, find_program, project
from ._vm_machine import Machine
from ._vm_monitor import Monitor

TIMED_OUT = 124  # as timeout(1)
BOOT_LIMIT = 120.0  # seconds until the command must have begun, on a very busy machine
BOOTS = 2  # an emulated guest on a busy host fails to come up once in hundreds of boots
# virtio-serial ports 1 and up: three that guest-init has, and one for what the guest asks of QEMU
_CHANNELS = ("stdout", "stderr", "status", "monitor")
_CONSOLE_LINES = 40

Sink = Callable[[bytes], object]


class Guest:
    """Runs `command` in a guest of `machine`; the context's end ends QEMU.

    `pump()` until `status` is not None. The time-out counts from the command's start. A guest
    that hung or died has status 124, and `failure` says how it ended.
    """

    def __init__(
        self,
        image: Image,
        payload: Path,
        machine: Machine,
        command: Sequence[str],
        *,
        stdout: Sink,
        stderr: Sink,
        timeout: float,
        share: Path | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        self.status: int | None = None
        self.failure = ""
        self.booted_after: float | None = None
        self._sinks = {"stdout": stdout, "stderr": stderr, "status": self._on_status}
        self._answer = b""
        self._timeout = timeout
        self.folder = Path(tempfile.mkdtemp(prefix="pyvirtnet-vm-"))
        self._monitor = Monitor(self.folder / "qmp")
        self._selector = selectors.DefaultSelector()
        self._qemu: subprocess.Popen[bytes] | None = None
        try:
            initrd = self._initrd(image, payload, command, share)
            self._command = [*prefix, *self._arguments(image, initrd, machine, share)]
            self._boots = 0
            self._start()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()

    def pump(self, wait: float | None = None) -> None:
        """Waits for output, the end or the time-out (or at most `wait` seconds); handles it."""
        if self.status is not None:
            return
        left = self._deadline() - time.monotonic()
        events = self._selector.select(max(0.0, left if wait is None else min(left, wait)))
        ended = False
        for key, _ in events:
            if key.data == "qemu":
                ended = True
            else:
                self._on_socket(key)
        if self.status is None and ended:
            self._drain()
            cause = self._cause_of_death()
            if not self._boot_again(cause):
                self._fail(cause)
        elif self.status is None and time.monotonic() >= self._deadline():
            if self.booted_after is None:
                cause = f"time-out: the guest was not up after {BOOT_LIMIT:g} s"
                if not self._boot_again(cause):
                    self._fail(cause)
            else:
                self._fail(f"time-out: the command did not end within {self._timeout:g} s")

    def _boot_again(self, cause: str) -> bool:
        """The command had not begun: nothing is lost by starting over. False if it had, or for
        the last time."""
        if self.booted_after is not None or self._boots >= BOOTS:
            return False
        last = "\n".join(self.console().splitlines()[-3:])
        print(
            f"vm: {cause}; booting it once more. Its console ended with:\n{last}", file=sys.stderr
        )
        self._end_qemu()
        self._close_sockets()
        self._answer = b""
        self._start()
        return True

    def _deadline(self) -> float:
        if self.booted_after is None:
            return self._started + BOOT_LIMIT
        return self._started + self.booted_after + self._timeout

    def console(self) -> str:
        """What the guest's kernel and init have written."""
        try:
            return (self.folder / "console").read_text(errors="replace").replace("\r", "")
        except FileNotFoundError:
            return ""

    def close(self) -> None:
        """Ends QEMU (its disks are snapshots: nothing is lost) and removes what it used."""
        self._end_qemu()
        self._close_sockets()
        self._selector.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _end_qemu(self) -> None:
        if self._qemu is not None and self._qemu.poll() is None:
            self._qemu.kill()
            self._qemu.wait()

    def _close_sockets(self) -> None:
        for key in list((self._selector.get_map() or {}).values()):
            self._selector.unregister(key.fileobj)
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
            else:
                os.close(key.fd)
        self._monitor.close()
        for channel in (*_CHANNELS, "qmp"):
            (self.folder / channel).unlink(missing_ok=True)

    def _listen(self) -> None:
        for channel in _CHANNELS:
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            listener.bind(str(self.folder / channel))
            listener.listen(1)
            self._selector.register(listener, selectors.EVENT_READ, f"listen {channel}")

    def _initrd(
        self, image: Image, payload: Path, command: Sequence[str], share: Path | None
    ) -> Path:
        """The image's initial file system, the package, and this run's command: the kernel
        unpacks archives that follow one another."""
        path = self.folder / "initrd"
        with open(path, "wb") as out:
            for part in (image.initrd, payload):
                with open(part, "rb") as file:
                    shutil.copyfileobj(file, out)
            with Archive(out) as archive:
                script = f"exec {shlex.join(command)}\n"
                archive.file("payload/run/pyvirtnet/command", os.fsencode(script), 0o755)
                if share is not None:
                    archive.file("payload/run/pyvirtnet/share", b"")
        return path

    def _arguments(
        self, image: Image, initrd: Path, machine: Machine, share: Path | None
    ) -> list[str]:
        # An emulated timer is late on a busy host. Without these two the kernel takes it for dead
        # and panics (no_timer_check), or gives up its fastest clock (tsc).
        kernel_line = (
            "console=ttyS0 panic=-1 mitigations=off no_timer_check tsc=reliable nowatchdog"
        )
        # Emulated, it all takes a quarter longer where pages are zeroed twice, and where no process
        # lies at the addresses of the one before: QEMU translates its code again.
        kernel_line += " init_on_alloc=0 norandmaps"
        kernel_line += " intel_iommu=on" if machine.iommu == "intel" else ""
        qemu = find_program("qemu-system-x86_64", "qemu-system-x86")
        # pdeathsig: the guest must not outlive this process, however it ends
        arguments = ["setpriv", "--pdeathsig", "KILL", qemu, "-nodefaults", "-no-user-config"]
        arguments += ["-display", "none", "-no-reboot", *machine.arguments(self.folder)]
        arguments += ["-kernel", str(image.kernel), "-initrd", str(initrd), "-append", kernel_line]
        arguments += ["-drive", f"file={image.disk},format=raw,if=none,id=root,snapshot=on"]
        arguments += ["-device", "virtio-blk-pci,drive=root,addr=1e.0"]
        arguments += ["-chardev", f"file,id=console,path={self.folder / 'console'}"]
        arguments += ["-serial", "chardev:console", "-device", "virtio-serial-pci,addr=1d.0"]
        for number, channel in enumerate(_CHANNELS, start=1):
            path = self.folder / channel
            arguments += ["-chardev", f"socket,id={channel},path={path}"]
            arguments += ["-device", f"virtserialport,chardev={channel},name={channel},nr={number}"]
        arguments += ["-qmp", f"unix:{self.folder / 'qmp'},server=on,wait=off"]
        arguments += _folder("project", project(), "1c.0", ",readonly=on")
        if share is not None:
            arguments += _folder("share", share, "1b.0")
        return arguments

    def _start(self) -> None:
        self._listen()
        self._boots += 1
        self._started = time.monotonic()
        with open(self.folder / "qemu.log", "wb") as log:
            self._qemu = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0
            )
        fd = os.pidfd_open(self._qemu.pid)
        self._selector.register(fd, selectors.EVENT_READ, "qemu")

    def _on_socket(self, key: selectors.SelectorKey) -> None:
        sock = key.fileobj
        assert isinstance(sock, socket.socket)
        if key.data.startswith("listen "):
            connection, _ = sock.accept()
            self._selector.unregister(sock)
            sock.close()
            channel = key.data.removeprefix("listen ")
            self._selector.register(connection, selectors.EVENT_READ, channel)
            return
        data = sock.recv(1 << 16)
        if data and key.data == "monitor":
            sock.sendall(self._monitor.answer(data))
        elif data:
            self._sinks[key.data](data)
        else:
            self._selector.unregister(sock)
            sock.close()

    def _on_status(self, data: bytes) -> None:
        """guest-init says "booted" before the command, and its exit status after it."""
        self._answer += data
        if self.booted_after is None and self._answer.startswith(b"booted\n"):
            self.booted_after = time.monotonic() - self._started
        lines = self._answer.split(b"\n")
        if len(lines) == 3:
            self._drain()
            self.status = int(lines[1])

    def _drain(self) -> None:
        """Takes the output that is already here; the guest has written it before it ended."""
        for key in list(self._selector.get_map().values()):
            if key.data in ("stdout", "stderr") and isinstance(key.fileobj, socket.socket):
                key.fileobj.setblocking(False)
                try:
                    while data := key.fileobj.recv(1 << 16):
                        self._sinks[key.data](data)
                except BlockingIOError:
                    continue

    def _cause_of_death(self) -> str:
        assert self._qemu is not None
        code = self._qemu.wait()
        lines = (self.folder / "qemu.log").read_text(errors="replace").splitlines()
        log = "\n".join(line for line in lines if "warning:" not in line)
        if self.booted_after is None and not self.console():
            raise Error("QEMU did not start", log or f"it ended with {code}", "see the message")
        panic = "Kernel panic" in self.console()
        how = "kernel panic" if panic else "the guest ended before the command did"
        if code < 0:
            how = f"QEMU was ended by {signal.Signals(-code).name}"
        return f"{how}\n{log}" if log else how

    def _fail(self, text: str) -> None:
        last = "\n".join(self.console().splitlines()[-_CONSOLE_LINES:])
        self.failure = f"{text}\n--- the guest's last console lines ---\n{last}"
        self.status = TIMED_OUT


def _folder(tag: str, path: Path, slot: str, options: str = "") -> list[str]:
    escaped = str(path).replace(",", ",,")
    device = f"local,id={tag},path={escaped},security_model=none,multidevs=remap{options}"
    return ["-fsdev", device, "-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag},addr={slot}"]
