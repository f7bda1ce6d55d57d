"""What the tests of cert_dir share: its files, and the line that refuses it."""

from __future__ import annotations

import logging
import os
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import pytest
from cryptography import x509

from certs import CertificateError, CertificateSettings, prepare
from support.certificates import (
    key_pem,
    own_key,
    pem,
)
from support.running import make_config

KEYS = ("ca.key", "client.key", "server.key")
FILES = ("ca.crt", "ca.key", "client.crt", "client.key", "client.p12", "server.crt", "server.key", "server.p12")


SETTINGS: CertificateSettings = make_config(Path("unused"), None).certs
SMALL = replace(SETTINGS, rsa_key_bits=1024)  # for what shakes no hands: a key of 2048 bits takes 100 ms


@contextmanager
def writes() -> Iterator[List[str]]:
    """What dduct.certs logs as written, as its lines say it; whatever others have done to the logger."""
    lines: List[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    logger, handler = logging.getLogger("dduct.certs"), Handler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)


def content(directory: Path) -> Dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def names_in(directory: Path) -> Tuple[str, ...]:
    return tuple(sorted(os.listdir(directory)))


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def complaint(directory: Path, name: str, *remedies: str) -> str:
    """The one line that refuses `directory`, which names the file and remedies; nothing is touched."""
    before = content(directory)
    with pytest.raises(CertificateError) as caught:
        prepare(directory, SMALL)
    line = str(caught.value)
    assert f'"{directory / name}"' in line
    assert [remedy for remedy in remedies if remedy not in line] == [], line
    assert "\n" not in line
    assert content(directory) == before
    return line


def put_own_authority(directory: Path, certificate: x509.Certificate, key: Any = own_key) -> None:
    (directory / "ca.key").write_bytes(key_pem(key))
    (directory / "ca.crt").write_bytes(pem(certificate))
