"""Images of containers, as registries have them."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Dict, List, Union


def write_image(directory: Path, layers: int = 5, size: int = 400_000) -> List[str]:
    """An image in the OCI layout at `directory`; the digests of its blobs as a client fetches them.

    Each of its `layers` has `size` bytes, which no compression makes fewer.
    """
    blobs = directory / "blobs/sha256"
    blobs.mkdir(parents=True)

    def add(data: bytes, kind: str) -> Dict[str, Union[str, int]]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(data)}

    diffs, descriptors = [], []
    for number in range(layers):
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w") as tar:
            entry = tarfile.TarInfo(f"layer-{number}")
            entry.size = size
            tar.addfile(entry, io.BytesIO(os.urandom(size)))
        diffs.append(f"sha256:{hashlib.sha256(content.getvalue()).hexdigest()}")
        descriptors.append(add(gzip.compress(content.getvalue(), 1), "layer.v1.tar+gzip"))
    platform = {"architecture": "amd64", "os": "linux"}
    config = add(
        json.dumps({**platform, "config": {}, "rootfs": {"type": "layers", "diff_ids": diffs}}).encode(),
        "config.v1+json",
    )
    manifest = {"schemaVersion": 2, "config": config, "layers": descriptors}
    manifest["mediaType"] = "application/vnd.oci.image.manifest.v1+json"
    index = add(json.dumps(manifest).encode(), "manifest.v1+json")
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [index]}))
    return sorted(str(one["digest"]) for one in [config, *descriptors])
