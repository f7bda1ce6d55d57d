"""What the tests of the modules at the top share."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import List

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from support.cert_dirs import SETTINGS, SMALL
from support.certificates import hand_made

from cache import Cache
from certs import prepare
from tls.authority import CertificateAuthority, KeyPair


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "files", timeout=lambda: 20.0)


@pytest.fixture
def pair(tmp_path: Path) -> List[Cache]:
    """Two processes; flock does not know the difference."""
    return [Cache(tmp_path / "files", timeout=lambda: 20.0) for _ in range(2)]


@pytest.fixture(scope="session")
def elliptic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with EC keys, which are read in no time. Read only."""
    directory = tmp_path_factory.mktemp("elliptic")
    own, *keys = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
    authority = CertificateAuthority(KeyPair(own, hand_made(own, SETTINGS.ca_cn)))
    for name, pair in (
        ("ca", KeyPair(own, authority.certificate)),
        ("server", authority.issue_server(keys[0], SETTINGS.server_cn, SETTINGS.server_dns_sans, 365)),
        ("client", authority.issue_client(keys[1], SETTINGS.client_cn, 365)),
    ):
        (directory / f"{name}.key").write_bytes(pair.key_pem)
        (directory / f"{name}.crt").write_bytes(pair.certificate_pem)
        (directory / f"{name}.key").chmod(0o600)
    prepare(directory, SMALL)  # adds the bundles
    return directory


@pytest.fixture
def copy(elliptic: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    shutil.copytree(elliptic, tmp_path / "certs")
    return tmp_path / "certs"
