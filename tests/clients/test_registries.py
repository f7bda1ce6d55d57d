"""skopeo and docker-registry: images pulled and pushed through dduct."""

from __future__ import annotations

import json
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Dict, List

import pytest
from support.images import write_image

from clients.workshop import Dduct, Registry, Workshop, require, run


def copy(dduct: Dduct, source: str, target: str) -> None:
    run("skopeo", "--insecure-policy", "copy", "-q", source, target, env=dduct.environment)


def pushed(workshop: Workshop, dduct: Dduct, registry: Registry) -> List[str]:
    """Push an image through dduct; its blobs."""
    image = workshop.directory / "image"
    digests = write_image(image)
    copy(dduct, f"oci:{image}", f"docker://{registry.host}/team/app:1")
    return digests


def content(directory: Path) -> Dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_an_image_is_pushed_through_dduct_and_pulled_twice(workshop: Workshop, tmp_path: Path) -> None:
    require("skopeo", "docker-registry")
    registry, dduct = workshop.registry(), workshop.dduct()
    digests = pushed(workshop, dduct, registry)
    assert registry.blobs_sent() == []
    source = f"docker://{registry.host}/team/app:1"
    copy(dduct, source, f"dir:{tmp_path}/first")
    assert sorted(registry.blobs_sent(len(digests))) == digests
    copy(dduct, source, f"dir:{tmp_path}/second")
    assert sorted(registry.blobs_sent()) == digests
    assert content(tmp_path / "first") == content(tmp_path / "second")
    assert {f"sha256:{name}" for name in content(tmp_path / "first")} >= set(digests)


def test_six_pulls_at_once_transfer_each_blob_once(workshop: Workshop, tmp_path: Path) -> None:
    require("skopeo", "docker-registry")
    registry, dduct = workshop.registry(), workshop.dduct()
    digests = pushed(workshop, dduct, registry)
    source = f"docker://{registry.host}/team/app:1"
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda number: copy(dduct, source, f"dir:{tmp_path}/{number}"), range(6)))
    assert sorted(registry.blobs_sent(len(digests))) == digests
    copies = [content(tmp_path / str(number)) for number in range(6)]
    assert all(one == copies[0] for one in copies)


def test_a_blob_is_shared_between_repositories(workshop: Workshop, tmp_path: Path) -> None:
    require("skopeo", "docker-registry")
    registry, dduct = workshop.registry(), workshop.dduct()
    digests = pushed(workshop, dduct, registry)
    copy(dduct, f"oci:{workshop.directory}/image", f"docker://{registry.host}/other/app:1")
    copy(dduct, f"docker://{registry.host}/team/app:1", f"dir:{tmp_path}/first")
    copy(dduct, f"docker://{registry.host}/other/app:1", f"dir:{tmp_path}/second")
    assert content(tmp_path / "first") == content(tmp_path / "second")
    stored = {path.name for path in (dduct.files / "sha256").rglob("*") if path.is_file()}
    (manifest,) = {f"sha256:{name}" for name in stored} - set(digests)  # it is known by its digest, too
    assert json.loads((dduct.files / "sha256" / manifest[7:9] / manifest[7:]).read_bytes())["schemaVersion"] == 2
    assert {f"sha256:{name}" for name in stored} == {*digests, manifest}


def test_podman_pulls_cold_and_warm(workshop: Workshop, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    require("skopeo", "docker-registry", "podman")
    registry, dduct = workshop.registry(), workshop.dduct()
    digests = pushed(workshop, dduct, registry)
    short = tempfile.mkdtemp(prefix="pod")  # podman takes no path of more than 50 characters
    request.addfinalizer(partial(shutil.rmtree, short))
    for attempt in ("cold", "warm"):
        store = tmp_path / attempt
        engine = ["podman", "--root", store, "--runroot", f"{short}/run-{attempt}", "--storage-driver", "vfs"]
        engine += ["--tmpdir", f"{short}/tmp-{attempt}", "--events-backend", "file", "--cgroup-manager", "cgroupfs"]
        run(*engine, "pull", "-q", f"docker://{registry.host}/team/app:1", env=dduct.environment)
        assert "team/app" in run(*engine, "images")
        assert sorted(registry.blobs_sent(len(digests))) == digests
