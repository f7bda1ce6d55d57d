"""A registry behind a token server, as a script for origins: public and private repositories, troubles on demand."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from typing import Callable, Dict, List, Optional, Set, Tuple
from urllib.parse import parse_qsl, urlsplit

from protocol.http1 import Authority, Target
from support.client import Answer, Client
from support.origin import Asked, Connection, Gate, Origin
from support.running import HOST, RunningDduct

LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
NEW_CLIENT, OLD_CLIENT = f"Accept: {LIST}, {MANIFEST}", f"Accept: {MANIFEST}"
Trouble = Callable[[Asked], Optional[Tuple[int, List[Tuple[str, str]]]]]


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


class Registry:
    """What it holds; `trouble` answers a request in its place. Its token server is an origin of its own, `tokens`; its
    own origin gives tokens, too.

    `passwords`: those of its users; any one is right where there are none. `basic`: it takes passwords itself.
    `lifetime`: of tokens, in seconds; `realm`: the token server that it names; `names_nobody`: it gives no token to
    requests without a user.
    """

    def __init__(self, dduct: RunningDduct, tokens: bool = True, etags: bool = True) -> None:
        self._wants_tokens = tokens
        self._etags = etags
        self._issued: Dict[str, str] = {}
        self._contents: Dict[str, Tuple[str, bytes]] = {}  # by digest: media type and bytes
        self.tags: Dict[Tuple[str, str], str] = {}
        self.private: Set[str] = set()
        self.remaining: Optional[int] = None  # requests, as it says with each manifest
        self.passwords: Dict[str, str] = {}
        self.basic = self.names_nobody = False
        self.lifetime = 300
        self.realm = ""
        self.gate: Optional[Gate] = None  # where layers stop after their beginning
        self.trouble: Trouble = lambda asked: None
        self.opens: Callable[[Asked], bool] = lambda asked: False  # what lets a request in, apart from tokens
        self.bare_layers = False  # their responses have no field of a registry, as those of a storage behind one
        self.coded_tokens = False  # in gzip, whatever is accepted
        self.dduct = dduct
        self.origin: Origin = dduct.origin(self._answer)
        self.tokens: Origin = dduct.origin(self._answer)

    def add(self, repository: str, tag: str) -> Tuple[str, str, str]:
        """An image for one architecture; the digests of its list, its manifest and its layer."""
        layer = self._hold("application/octet-stream", f"{repository}:{tag} {len(self._contents)}".encode() * 50)
        manifest = self._hold(MANIFEST, json.dumps({"layers": [layer]}).encode())
        index = self._hold(LIST, json.dumps({"manifests": [manifest]}).encode())
        self.tags[repository, tag] = index
        return index, manifest, layer

    def content(self, digest: str) -> bytes:
        """The bytes with a digest."""
        return self._contents[digest][1]

    def asked(self, part: str = "") -> List[str]:
        """The requests whose target has this part: method and target."""
        return [f"{one.method} {one.target}" for one in list(self.origin.requests) if part in one.target]

    def target(self, path: str) -> Target:
        """What is asked for by a path here."""
        return Target("https", Authority(HOST, self.origin.port), path)

    @property
    def host(self) -> str:
        """As rules for credentials name it."""
        return f"{HOST}:{self.origin.port}"

    def get(
        self,
        path: str,
        *fields: str,
        method: str = "GET",
        source: str = "",
        user: str = "",
        origin: Optional[Origin] = None,
    ) -> Answer:
        """One request through dduct, on a connection of its own, from an address, and of a user of dduct's; `origin`:
        not to the registry, but to that one."""
        host = f"{HOST}:{(origin or self.origin).port}"
        with self.connected(source, user, host) as client:
            lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", *fields, "", ""]
            client.send("\r\n".join(lines).encode())
            return client.read(method=method)

    def connected(self, source: str = "", user: str = "", host: str = "") -> Client:
        """A client inside a connection to it, or to another `host`."""
        host = host or self.host
        client = Client(self.dduct.tcp_port, source=source)
        login = f"Proxy-Authorization: Basic {base64.b64encode(f'{user}:pw'.encode()).decode()}\r\n" if user else ""
        client.send(f"CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n{login}\r\n".encode())
        assert client.read(method="CONNECT").status == 200
        client.start_tls(self.dduct.trust, HOST)
        return client

    def manifest(self, repository: str, reference: str, *fields: str, method: str = "GET") -> Answer:
        """A manifest, for a client that takes lists unless it says otherwise."""
        accept = [] if any(field.startswith("Accept") for field in fields) else [NEW_CLIENT]
        return self.get(f"/v2/{repository}/manifests/{reference}", *accept, *fields, method=method)

    def blob(self, repository: str, digest: str, *fields: str) -> Answer:
        return self.get(f"/v2/{repository}/blobs/{digest}", *fields)

    def token(self, repository: str, user: str = "", query: str = "") -> str:
        """A token as clients get one through dduct: after a challenge; the field to send. Without `user`, anybody's."""
        challenge = self.manifest(repository, "1").get("www-authenticate") or ""
        assert "Bearer" in challenge
        login = [f"Authorization: Basic {base64.b64encode(f'{user}:secret'.encode()).decode()}"] if user else []
        answer = self.token_answer(f"&scope=repository:{repository}:pull{query}", *login)
        return f"Authorization: Bearer {json.loads(answer.body)['token']}"

    def token_answer(self, query: str, *fields: str) -> Answer:
        """What a request for a token is answered."""
        origin = self.origin if self.realm else self.tokens
        return self.get(f"/token?service=registry{query}", *fields, origin=origin)

    def _hold(self, kind: str, data: bytes) -> str:
        self._contents[digest_of(data)] = kind, data
        return digest_of(data)

    def _answer(self, asked: Asked, connection: Connection) -> None:
        trouble = self.trouble(asked)
        url, head = urlsplit(asked.target), asked.method == "HEAD"
        if trouble is not None:
            connection.respond(trouble[0], trouble[1], b"trouble", head)
        elif url.path == "/token":
            self._give_token(asked, dict(parse_qsl(url.query)), connection)
        elif self._wants_tokens and not self._may(asked, url.path) and not self.opens(asked):
            connection.respond(401, [("WWW-Authenticate", self._challenge(url.path))], b"who are you?", head)
        elif url.path == "/v2/":
            connection.respond(200, [], b"{}", head)
        else:
            self._give(asked, url.path, connection)

    def _give_token(self, asked: Asked, parameters: Dict[str, str], connection: Connection) -> None:
        user = self._user(asked)
        if user is None or (self.names_nobody and not user):
            connection.respond(401, [("WWW-Authenticate", 'Basic realm="tokens"')], b"who are you?")
            return
        token = f"t{len(self._issued)}-{user}"
        self._issued[token] = user or parameters.get("account", "")
        body = json.dumps({"token": token, "expires_in": self.lifetime}).encode()
        coded = gzip.compress(body) if self.coded_tokens else body
        connection.respond(200, [("Content-Encoding", "gzip")] if self.coded_tokens else [], coded)

    def revoke(self) -> None:
        """End all tokens."""
        self._issued.clear()

    def _challenge(self, path: str) -> str:
        if self.basic:
            return 'Basic realm="registry"'
        match = re.match("/v2/(.+)/(?:manifests|blobs|tags)/", path)
        scope = "" if match is None else f',scope="repository:{match[1]}:pull"'
        return f'Bearer realm="{self.realm or f"https://{HOST}:{self.tokens.port}/token"}",service="registry"{scope}'

    def _user(self, asked: Asked) -> Optional[str]:
        """Empty for a request without one, None where the password is wrong."""
        login = asked.get("authorization")
        if login is None:
            return ""
        if not login.startswith("Basic "):
            return None
        user, _, password = base64.b64decode(login[6:]).decode().partition(":")
        return user if password == self.passwords.get(user, password) else None

    def _may(self, asked: Asked, path: str) -> bool:
        user = self._issued.get((asked.get("authorization") or "")[7:])
        if self.basic:
            user = self._user(asked) or None
        match = re.match("/v2/(.+)/(?:manifests|blobs)/", path)
        return user is not None and (match is None or match[1] not in self.private or bool(user))

    def _give(self, asked: Asked, path: str, connection: Connection) -> None:
        head, match = asked.method == "HEAD", re.fullmatch("/v2/(.+)/(manifests|blobs)/(.+)", path)
        digest = "" if match is None else self.tags.get((match[1], match[3]), match[3])
        if digest not in self._contents:
            connection.respond(404, [], b"unknown", head)
            return
        kind, data = self._contents[digest]
        if kind == LIST and LIST not in (asked.get("accept") or ""):
            digest = json.loads(data)["manifests"][0]
            kind, data = self._contents[digest]
        tag = [("ETag", f'"{digest}"')] if self._etags else []
        told = [] if self.remaining is None else [("RateLimit-Remaining", f"{self.remaining};w=21600")]
        if tag and asked.get("if-none-match") == tag[0][1]:
            connection.head(304, tag)
        elif self.gate is not None and path.partition("/blobs/")[1] and not head:
            connection.head(200, [("Content-Length", str(len(data))), *tag])
            connection.send_body(data[:10])
            self.gate.wait()
            connection.send_body(data[10:])
        else:
            named = [] if self.bare_layers and match is not None and match[2] == "blobs" else [digest]
            fields = [("Content-Type", kind), *(("Docker-Content-Digest", one) for one in named), *tag, *told]
            connection.respond(200, fields, data, head)
