"""Each artefact, built once and tried where it will run."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Callable, Iterator

import pytest
from clients.workshop import require

from packages.yard import MANIFESTS, ROOT, Debian, Yard, build_base, build_root, once, run, tool
from tls.authority import CertificateAuthority


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that all processes of this run share."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def build(shelf: Path) -> Callable[..., Path]:
    """Run a build script once; the artefact."""

    def build(name: str, script: str, *arguments: object) -> Path:
        target = shelf / "artefacts" / name
        target.parent.mkdir(exist_ok=True)
        with once(target) as is_needed:
            if is_needed:
                run(
                    sys.executable,
                    ROOT / "packaging" / script,
                    *arguments,
                    target if script == "pyz.py" else target.parent,
                )
        return target

    return build


@pytest.fixture(scope="session")
def base_root(shelf: Path) -> Path:
    """The smallest Debian 12 that has apt."""
    require("mmdebstrap")
    root = shelf / "base"
    with once(root) as is_needed:
        if is_needed:
            build_base(root)
    return root


@pytest.fixture(scope="session")
def debian_root(shelf: Path, base_root: Path) -> Path:
    """A Debian 12 as a server has it, with Python and cryptography. It is never changed."""
    root = shelf / "root"
    with once(root) as is_needed:
        if is_needed:
            build_root(base_root, root)
    return root


@pytest.fixture
def debian(debian_root: Path, tmp_path: Path) -> Iterator[Debian]:
    """A Debian 12 of this test's own."""
    with Debian(debian_root, tmp_path / "overlay") as debian:
        yield debian


@pytest.fixture
def yard(tmp_path: Path, origin_authority: CertificateAuthority) -> Iterator[Yard]:
    """A network of this test's own, with an origin."""
    require("ip", "curl")
    with Yard(tmp_path, origin_authority) as yard:
        yield yard


@pytest.fixture
def rendered(tmp_path: Path, certificates: Path) -> Path:
    """What `kubectl apply -k` would send, with an authority as the README has it made."""
    directory = tmp_path / "kubernetes"
    shutil.copytree(MANIFESTS, directory)
    for name in ("ca.key", "ca.crt"):
        shutil.copy(certificates / name, directory)
    path = tmp_path / "all.yaml"
    path.write_text(run(tool("kubectl"), "kustomize", directory))
    return path
