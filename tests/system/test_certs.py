"""Processes that start with one cert_dir."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path

from support.running import make_config

from certs import CertificateSettings

ROOT = Path(__file__).resolve().parents[2]
FILES = ("ca.crt", "ca.key", "client.crt", "client.key", "client.p12", "server.crt", "server.key", "server.p12")
SETTINGS: CertificateSettings = make_config(Path("unused"), None).certs


def test_processes_that_start_at_once_agree_on_one_authority(tmp_path: Path) -> None:
    program = (
        "import ast, sys; from pathlib import Path; from certs import CertificateSettings, prepare\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "print(prepare(Path(sys.argv[1]), CertificateSettings(**ast.literal_eval(sys.argv[2]))).pem.decode(), end='')"
    )
    settings = {one.name: getattr(SETTINGS, one.name) for one in fields(CertificateSettings)}
    command = [sys.executable, "-c", program, str(tmp_path / "certs"), repr(settings)]
    pipe = subprocess.PIPE
    with ExitStack() as stack:
        processes = []
        for _ in range(3):
            process = stack.enter_context(subprocess.Popen(command, stdin=pipe, stdout=pipe, cwd=ROOT, text=True))
            stack.callback(process.kill)
            processes.append(process)
        for process in processes:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        answers = {process.communicate(timeout=60)[0] for process in processes}
    assert answers == {(tmp_path / "certs" / "ca.crt").read_text()}
    assert tuple(sorted(path.name for path in (tmp_path / "certs").iterdir())) == FILES
