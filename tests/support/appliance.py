"""The appliance's shell functions in a directory of their own, with stand-ins for what would touch this machine."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Dict, List, Optional

from server.config import load
from server.config_keys import Config

ROOT = Path(__file__).resolve().parents[2]
OPENNEBULA = ROOT / "packaging" / "opennebula"
APPLIANCE = OPENNEBULA / "appliances" / "dduct"
TIMEOUT = 60.0

LINK = "2: eth0: <UP> mtu 1500 state UP \\    link/ether 02:00:0a:00:02:0f brd ff:ff:ff:ff:ff:ff"
ADDRESSES = """1: lo    inet 127.0.0.1/8 scope host lo
2: eth0    inet 10.0.2.15/24 brd 10.0.2.255 scope global eth0
3: eth1    inet 192.168.9.5/16 scope global eth1"""

# Each stand-in writes down what it was asked, and answers from a file of its name where there is one.
STAND_IN = """#!/bin/sh
printf '%s\\n' "$(basename "$0") $*" >> "{log}"
[ ! -e "{answers}/$(basename "$0")" ] || . "{answers}/$(basename "$0")"
"""
ANSWERS = {
    "ip": """case "$*" in
  "-o link show") cat "{answers}/link" ;;
  "-o addr show dev eth0 scope global") grep eth0 "{answers}/addresses" ;;
  "-o addr show") cat "{answers}/addresses" ;;
  "-o route show default") echo "default via 10.0.2.2 dev eth0" ;;
  *) exit 1 ;;
esac""",
    "lsblk": """case "$*" in
  "-nspro NAME /dev/vda1") printf '/dev/vda1\\n/dev/vda\\n' ;;
  "-dnpro NAME,TYPE,RO") printf '/dev/vda disk 0\\n/dev/sr0 rom 0\\n/dev/zram0 disk 0\\n'; cat "{answers}/disks" ;;
  *) exit 1 ;;
esac""",
    "findmnt": """case "$*" in
  "-nro SOURCE /") echo /dev/vda1 ;;
  "-nro SOURCE --mountpoint "*) cat "{answers}/mounted" ;;
  "-nro TARGET -S "*) cat "{answers}/targets" ;;
  *) exit 1 ;;
esac""",
    "blockdev": 'stat -c %s "$2"',
    "mount": 'echo "$5" > "{answers}/mounted"',
    "umount": ': > "{answers}/mounted"',
    "id": 'stat -c %u "{answers}"',
}
SILENT = ("systemctl", "chown", "onegate", "curl", "journalctl", "resize2fs")


def encoded(data: bytes) -> str:
    """As an input wants it."""
    return base64.b64encode(data).decode()


class Appliance:
    """A root directory, and the stages of the appliance in it."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "root"
        self.umask = "0077"  # the framework's own
        self.etc = self.root / "etc" / "dduct"
        self.state = self.root / "var" / "lib" / "dduct"
        self.report = self.root / "report"
        self.toml = self.etc / "dduct.toml"
        self._log = directory / "asked"
        self._answers = directory / "answers"
        self._bin = directory / "bin"
        for place in (self.etc, self.state, self._answers, self._bin, self.root / "usr" / "lib"):
            place.mkdir(parents=True)
        (self.root / "usr" / "lib" / "dduct").symlink_to(ROOT)
        for name in (*ANSWERS, *SILENT):
            self.program(name, STAND_IN.format(log=self._log, answers=self._answers))
        self.program("python3", f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        self.program("timeout", '#!/bin/sh\nshift\nexec "$@"\n')
        for name, text in ANSWERS.items():
            self.answer(name, text.format(answers=self._answers))
        for name, text in {"link": LINK, "addresses": ADDRESSES, "disks": "", "mounted": "", "targets": ""}.items():
            self.answer(name, text)

    def program(self, name: str, text: str) -> None:
        """Put a program before all others of its name."""
        path = self._bin / name
        path.write_text(text)
        path.chmod(0o755)

    def answer(self, name: str, text: str) -> None:
        """What a stand-in does from now on."""
        (self._answers / name).write_text(text + "\n" if text else "")

    def asked(self, name: str) -> List[str]:
        """What a stand-in was asked so far, each with its name before."""
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        return [line for line in lines if line.startswith(f"{name} ")]

    def run(self, stage: str, **inputs: str) -> subprocess.CompletedProcess[str]:
        """Run a function of appliance.sh as the framework does; inputs without their ONEAPP_DDUCT_."""
        script = (
            f'set -e\numask {self.umask}\nsource "{OPENNEBULA}/image/common.sh"\nsource "{APPLIANCE}/appliance.sh"\n'
            'is_device() { [[ -f "$1" ]]; }\n'
            f"{stage} 2>&1\n"
        )
        environment = {
            "PATH": f"{self._bin}:{os.environ['PATH']}:/usr/sbin:/sbin",
            "DDUCT_ROOT": str(self.root),
            "DDUCT_NETWORK_ATTEMPTS": "1",
            "ONE_SERVICE_REPORT": str(self.report),
            "ONEGATE_ENDPOINT": "http://onegate",
            **{f"ONEAPP_DDUCT_{name}": value for name, value in inputs.items()},
        }
        command = [shutil.which("bash") or "bash", "-c", script]
        return subprocess.run(
            command, env=environment, cwd=self.root, capture_output=True, text=True, timeout=TIMEOUT, errors="replace"
        )

    def configure(self, **inputs: str) -> Config:
        """Run that stage, which has to succeed, and read what it has written."""
        done = self.run("service_configure", **inputs)
        assert done.returncode == 0, done.stdout + done.stderr
        return load(self.toml, Path("/nowhere"))

    def refused(self, variable: Optional[str] = None, **inputs: str) -> str:
        """Run that stage, which has to fail because of one input and change nothing; its output."""
        before = self._contents()
        done = self.run("service_configure", **inputs)
        assert done.returncode != 0, done.stdout
        lines = [line for line in done.stdout.splitlines() if "ERROR" in line]
        assert len(lines) == 1, done.stdout + done.stderr
        assert self._contents() == before
        name = variable or next(iter(inputs))
        assert f" ONEAPP_DDUCT_{name}: " in lines[0], lines[0]
        updates = self.asked("onegate")
        assert f'--data ERROR="dduct: ONEAPP_DDUCT_{name}: ' in updates[-2]
        assert updates[-1].endswith('READY="NO"')
        return lines[0]

    def _contents(self) -> Dict[str, bytes]:
        places = [self.etc, self.state, self.root / "etc" / "systemd"]
        files = [path for place in places for path in place.rglob("*") if path.is_file()]
        return {str(path): path.read_bytes() for path in files}
