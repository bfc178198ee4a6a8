"""Boots a real Linux guest under QEMU, stops it, and takes QEMU's own dumps and the plain memory of that moment.

    python -m tests.peers.guest KERNEL_DIR BUSYBOX OUT_DIR

``KERNEL_DIR`` is an unpacked Debian kernel package (``boot/vmlinuz-*``, ``lib/modules``), ``BUSYBOX`` a static one.
``.ci/run`` fetches both and the kernel's debug image; the tests find ``OUT_DIR`` through ``DUMPXLATE_GUEST``.
"""

from __future__ import annotations

import gzip
import json
import re
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

MEMORY = 128 << 20
BOOT_SECONDS = 300
TASK = "dumpxlate-task"
INIT = f"""#!/bin/busybox sh
/bin/busybox mkdir /proc /sys
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox insmod /qemu_fw_cfg.ko
/{TASK} &
echo GUEST-READY
exec /bin/busybox sleep 1000000
"""
FILE, FOLDER, DEVICE = 0o100755, 0o040755, 0o020600
DUMPS: dict[str, dict[str, Any]] = {
    "elf": {"paging": False},
    "elf-paging": {"paging": True},
    "kdump-zlib": {"paging": False, "format": "kdump-zlib"},  # QEMU writes it flattened
}


def cpio(entries: dict[str, tuple[int, bytes]], console: str = "dev/console") -> bytes:
    """An initramfs (the "new ASCII" cpio of the kernel's documentation), without a tool to make one."""
    out = bytearray()
    everything = {**entries, console: (DEVICE, b""), "TRAILER!!!": (0, b"")}
    for inode, (name, (mode, body)) in enumerate(everything.items(), start=1):
        major, minor = (5, 1) if name == console else (0, 0)
        fields = (inode, mode, 0, 0, 1, 0, len(body), 0, 0, major, minor, len(name) + 1, 0)
        out += b"070701" + "".join(f"{field:08x}" for field in fields).encode() + name.encode() + b"\0"
        out += bytes(-len(out) % 4) + body
        out += bytes(-len(out) % 4)
    return bytes(out)


def initramfs(kernel: Path, busybox: Path) -> bytes:
    """busybox, the module that hands VMCOREINFO to QEMU, and a script of a dozen lines."""
    (module,) = kernel.glob("lib/modules/*/kernel/drivers/firmware/qemu_fw_cfg.ko")
    task = "#!/bin/busybox sh\nwhile :; do /bin/busybox sleep 1000; done\n"
    return gzip.compress(
        cpio(
            {
                "bin": (FOLDER, b""),
                "dev": (FOLDER, b""),
                "bin/busybox": (FILE, busybox.read_bytes()),
                "qemu_fw_cfg.ko": (FILE, module.read_bytes()),
                "init": (FILE, INIT.encode()),
                TASK: (FILE, task.encode()),
            }
        )
    )


class Monitor:
    """QEMU's machine protocol, as far as this needs it."""

    def __init__(self, path: Path, process: subprocess.Popen[bytes]) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        for _ in range(100):
            with suppress(FileNotFoundError, ConnectionRefusedError):
                self._socket.connect(str(path))
                break
            if process.poll() is not None:
                raise RuntimeError(f"qemu ended with status {process.returncode}")
            time.sleep(0.1)
        self._lines = self._socket.makefile("r")
        json.loads(self._lines.readline())
        self.ask("qmp_capabilities")

    def ask(self, command: str, **arguments: Any) -> Any:
        self._socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode())
        for line in self._lines:
            answer = json.loads(line)
            if "error" in answer:
                raise RuntimeError(f"{command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]
        raise RuntimeError(f"{command}: qemu closed the connection")


def wait_for(serial: Path, text: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + BOOT_SECONDS
    while time.monotonic() < end and process.poll() is None:
        if serial.exists() and text in serial.read_text(errors="replace"):
            return
        time.sleep(0.2)
    said = serial.read_text(errors="replace")[-2000:] if serial.exists() else ""
    raise RuntimeError(f"the guest did not say {text}; it said: {said}")


def registers(monitor: Monitor) -> list[dict[str, int]]:
    """General registers of each CPU, as the monitor prints them."""
    found = []
    for cpu in monitor.ask("query-cpus-fast"):
        line = {"command-line": "info registers", "cpu-index": cpu["cpu-index"]}
        text = monitor.ask("human-monitor-command", **line)
        rows = re.findall(r"\b(R[A-Z0-9]{1,2}|CR[034]) ?=([0-9a-f]{8,16})\b", text)
        found.append({name.lower(): int(value, 16) for name, value in rows})
    return found


def translations(monitor: Monitor, cpus: list[dict[str, int]], out: Path) -> list[tuple[int, int, int | None]]:
    """(cpu, virtual, physical or None) as ``gva2gpa`` has it; all that ``info tlb`` lists goes to ``tlb-CPU.txt``."""
    found: list[tuple[int, int, int | None]] = []
    for cpu, known in enumerate(cpus):
        text = monitor.ask("human-monitor-command", **{"command-line": "info tlb", "cpu-index": cpu})
        (out / f"tlb-{cpu}.txt").write_text(text)
        listed = [int(row, 16) for row in re.findall(r"^([0-9a-f]{16}): ", text, re.MULTILINE)]
        some = [*listed[:: len(listed) // 20], known["rip"], known["rsp"], listed[-1] + (1 << 30) & (1 << 64) - 1, 0]
        for address in some:
            line = {"command-line": f"gva2gpa {address:#x}", "cpu-index": cpu}
            answer = re.search(r"gpa: (0x[0-9a-f]+)", monitor.ask("human-monitor-command", **line))
            found.append((cpu, address, int(answer[1], 16) if answer else None))
    return found


def main(kernel: Path, busybox: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (image,) = kernel.glob("boot/vmlinuz-*")
    (out / "initramfs").write_bytes(initramfs(kernel, busybox))
    command = ["qemu-system-x86_64", "-machine", "pc", "-m", str(MEMORY >> 20), "-smp", "2", "-accel", "tcg,tb-size=32"]
    command += ["-nodefaults", "-display", "none", "-nic", "none", "-no-reboot", "-device", "vmcoreinfo"]
    command += ["-serial", "file:serial.log", "-qmp", "unix:qmp.sock,server=on,wait=off"]
    command += ["-kernel", str(image.resolve()), "-initrd", "initramfs", "-append", "console=ttyS0 panic=-1 quiet"]
    for stale in ("serial.log", "qmp.sock"):
        (out / stale).unlink(missing_ok=True)
    process = subprocess.Popen(command, cwd=out, stdin=subprocess.DEVNULL)
    try:
        monitor = Monitor(out / "qmp.sock", process)
        wait_for(out / "serial.log", "GUEST-READY", process)
        time.sleep(1)  # the task starts, both CPUs come to rest
        monitor.ask("stop")
        monitor.ask("pmemsave", val=0, size=MEMORY, filename="ram.raw")
        for name, arguments in DUMPS.items():
            monitor.ask("dump-guest-memory", protocol=f"file:{name}", **arguments)
        cpus = registers(monitor)
        facts = {"release": image.name.removeprefix("vmlinuz-"), "task": TASK, "registers": cpus}
        facts["gva2gpa"] = translations(monitor, cpus, out)
        (out / "facts.json").write_text(json.dumps(facts, indent=1))
    finally:
        process.kill()
        process.wait(30)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
