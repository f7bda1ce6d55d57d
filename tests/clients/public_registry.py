"""A registry as Docker Hub is one: tokens for anybody, layers from signed URLs of a CDN, and troubles on demand.

docker-registry has the images. In front of it, and of its token server, origins of the tests count what dduct asks.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import io
import json
import os
import re
import tarfile
import threading
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

from support.origin import Asked, Connection

from clients.tokens import TokenServer
from clients.workshop import CDN, REGISTRY, TIMEOUT, TOKENS, Dduct, Workshop, free_port

DOCKER = "application/vnd.docker.distribution.manifest"
LIST, MANIFEST = f"{DOCKER}.list.v2+json", f"{DOCKER}.v2+json"
CONFIG, LAYER = "application/vnd.docker.container.image.v1+json", "application/vnd.docker.image.rootfs.diff.tar.gzip"
ARCHITECTURES = ("amd64", "arm64")

Refusal = Tuple[int, List[Tuple[str, str]]]
Trouble = Callable[[Asked], Optional[Refusal]]
_BLOB = re.compile("/v2/.+/blobs/sha256:([0-9a-f]{64})")
_HOP_BY_HOP = ("connection", "transfer-encoding", "keep-alive")
_SIGNATURE = "X-Amz-Signature=5160"


class PublicRegistry:
    """Its `origin` is what dduct asks; `trouble` answers in the place of docker-registry, or does nothing."""

    def __init__(self, workshop: Workshop, cdn: bool = False) -> None:
        self.tokens = TokenServer(workshop)
        self.tokens.gives_to_anybody = True
        self.trouble: Trouble = lambda asked: None
        self.signed: List[str] = []  # what the CDN was asked for
        self._released = threading.Event()
        self._store = workshop.directory / "registry-store"
        self._back = self._start(workshop, "registry", self.tokens.settings)
        self._pushes = self._start(workshop, "pushes", "")  # the same store, open to the tests alone
        self.origin = workshop.origin(REGISTRY, self._serve)
        self._cdn = workshop.origin(CDN, self._serve_signed) if cdn else None
        workshop.at_end(self._released.set)

    def dduct(self, workshop: Workshop, cache: str = "", proxy: str = "") -> Dduct:
        """A dduct in front of all that, which waits for an origin for a short time only."""
        return workshop.dduct(f"upstream_timeout = '1s'\nrelay_timeout = '2s'\n{proxy}\n[cache]\n{cache}", [TOKENS])

    @property
    def host(self) -> str:
        return f"{REGISTRY}:{self.origin.port}"

    def push(self, repository: str, tag: str) -> str:
        """An image for two architectures; the digest of its list."""
        entries = []
        for architecture in ARCHITECTURES:
            manifest = self._add_image(repository, architecture)
            platform = {"architecture": architecture, "os": "linux"}
            entries.append({**self._add_manifest(repository, manifest, MANIFEST), "platform": platform})
        index = {"schemaVersion": 2, "mediaType": LIST, "manifests": entries}
        return str(self._add_manifest(repository, index, LIST, tag)["digest"])

    def asked(self, part: str = "") -> List[str]:
        """The requests of dduct for paths with this in them, without those for /v2/ itself: method and path."""
        requests = [one for one in self.origin.requests if one.target != "/v2/" and part in one.target]
        return [f"{one.method} {one.target}" for one in requests]

    def refuse(self, part: str, status: int = 429) -> None:
        """Answer all requests for paths with this in them by a refusal for one minute."""
        self.trouble = lambda asked: (status, [("Retry-After", "60")]) if part in asked.target else None

    def hang(self) -> None:
        """Answer nothing any more."""
        self.trouble = self._hang

    def _hang(self, asked: Asked) -> Refusal:
        self._released.wait(TIMEOUT)
        return 500, []

    # What is in it

    def _start(self, workshop: Workshop, name: str, authentication: str) -> int:
        port = free_port()
        configuration = workshop.directory / f"{name}.yml"
        configuration.write_text(f"""
version: 0.1
log: {{accesslog: {{disabled: true}}, level: warn}}
storage: {{filesystem: {{rootdirectory: {self._store}}}}}
http: {{addr: 127.0.0.1:{port}, relativeurls: true}}
{authentication}
""")
        workshop.start(name, ["docker-registry", "serve", configuration]).wait_for_port(port)
        return port

    def _add_image(self, repository: str, architecture: str) -> Dict[str, Any]:
        layers, diffs = [], []
        for number in range(3):
            content = io.BytesIO()
            with tarfile.open(fileobj=content, mode="w") as tar:
                entry = tarfile.TarInfo(f"layer-{number}")
                entry.size = 30_000
                tar.addfile(entry, io.BytesIO(os.urandom(entry.size)))
            diffs.append(f"sha256:{hashlib.sha256(content.getvalue()).hexdigest()}")
            layers.append({**self._add_blob(repository, gzip.compress(content.getvalue(), 1)), "mediaType": LAYER})
        config = {"architecture": architecture, "os": "linux", "config": {}}
        config["rootfs"] = {"type": "layers", "diff_ids": diffs}
        described = {**self._add_blob(repository, json.dumps(config).encode()), "mediaType": CONFIG}
        return {"schemaVersion": 2, "mediaType": MANIFEST, "config": described, "layers": layers}

    def _add_blob(self, repository: str, data: bytes) -> Dict[str, Any]:
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        place = self._push("POST", f"/v2/{repository}/blobs/uploads/", b"", "")
        self._push("PUT", f"{place}&digest={digest}", data, "application/octet-stream")
        return {"digest": digest, "size": len(data)}

    def _add_manifest(self, repository: str, manifest: Dict[str, Any], kind: str, tag: str = "") -> Dict[str, Any]:
        data = json.dumps(manifest, indent=3).encode()
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self._push("PUT", f"/v2/{repository}/manifests/{tag or digest}", data, kind)
        return {"mediaType": kind, "digest": digest, "size": len(data)}

    def _push(self, method: str, path: str, data: bytes, kind: str) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self._pushes, timeout=TIMEOUT)
        connection.request(method, path, data, {"Content-Type": kind})
        response = connection.getresponse()
        said = response.read()
        connection.close()
        assert response.status in (201, 202), said
        return response.getheader("Location") or ""

    # What dduct asks

    def _serve(self, asked: Asked, connection: Connection) -> None:
        head_only = asked.method == "HEAD"
        trouble = self.trouble(asked)
        if trouble is not None:
            connection.respond(trouble[0], trouble[1], b"{}", head_only)
            return
        back = http.client.HTTPConnection("127.0.0.1", self._back, timeout=TIMEOUT)
        back.putrequest(asked.method, asked.target, skip_host=True, skip_accept_encoding=True)
        for name, value in asked.headers:
            back.putheader(name, value)
        back.endheaders(asked.body)
        response = back.getresponse()
        fields = [(name, value) for name, value in response.getheaders() if name.lower() not in _HOP_BY_HOP]
        body, status = response.read(), response.status
        back.close()
        if self._cdn is not None and status == 200 and _BLOB.fullmatch(asked.target):
            there = f"https://{CDN}:{self._cdn.port}{asked.target}?X-Amz-Expires=20&{_SIGNATURE}"
            fields, body, status = [("Location", there), ("Content-Length", "0")], b"", 307
        connection.head(status, fields)
        if not head_only:
            connection.send(body)

    def _serve_signed(self, asked: Asked, connection: Connection) -> None:
        """A layer; S3 refuses two kinds of credentials at once."""
        path, _, query = asked.target.partition("?")
        self.signed.append(path)
        match = _BLOB.fullmatch(path)
        if match is None or _SIGNATURE not in query or asked.get("authorization") is not None:
            connection.respond(400, [], b"one kind of credentials, please", asked.method == "HEAD")
            return
        found = self._store / "docker/registry/v2/blobs/sha256" / match[1][:2] / match[1] / "data"
        connection.respond(200, [("ETag", f'"{match[1][:32]}"')], found.read_bytes(), asked.method == "HEAD")


def blobs_of(directory: Path) -> Dict[str, bytes]:
    """What `skopeo copy … dir:` has written, all of it proved by its name."""
    found = {path.name: path.read_bytes() for path in directory.iterdir() if len(path.name) == 64}
    for name, data in found.items():
        assert hashlib.sha256(data).hexdigest() == name
    return found
