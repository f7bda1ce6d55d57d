"""A token server as registries have them: JWTs for those who know a password, and for anybody where that is allowed."""

from __future__ import annotations

import base64
import json
import secrets
import time
from typing import Any, Dict, List, Set, Tuple
from urllib.parse import parse_qs, urlsplit

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509 import load_pem_x509_certificate
from support.origin import Asked, Connection

from clients.workshop import TOKENS, Workshop

REFUSAL = b'{"errors": [{"code": "UNAUTHORIZED"}]}'


def encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class TokenServer:
    """Issues the tokens of the distribution specification. Anybody may pull from the repositories in `public`."""

    def __init__(self, workshop: Workshop) -> None:
        self.users = {"alice": "wonder"}
        self.public: Set[str] = set()
        self.gives_to_anybody = False  # tokens, which open `public` alone; else those without a password get a 401
        self.issued: List[str] = []
        self.certificate, key = workshop.certificate(TOKENS)
        loaded = serialization.load_pem_private_key(key.read_bytes(), None)
        assert isinstance(loaded, ec.EllipticCurvePrivateKey)
        self._key = loaded
        self.origin = workshop.origin(TOKENS, self._serve)

    @property
    def settings(self) -> str:
        """What a docker-registry has to know of it."""
        realm = f"https://{TOKENS}:{self.origin.port}/token"
        service = f"realm: '{realm}', service: registry, issuer: tokens, rootcertbundle: {self.certificate}"
        return f"auth: {{token: {{{service}}}}}"

    def token(self, user: str, service: str, access: List[Dict[str, Any]]) -> str:
        """A signed token for five minutes."""
        chain = load_pem_x509_certificate(self.certificate.read_bytes()).public_bytes(serialization.Encoding.DER)
        header = {"typ": "JWT", "alg": "ES256", "x5c": [base64.b64encode(chain).decode()]}
        now = int(time.time())
        claims: Dict[str, Any] = {"iss": "tokens", "sub": user, "aud": service, "access": access}
        claims.update({"jti": secrets.token_hex(8), "iat": now, "nbf": now - 10, "exp": now + 300})
        signed = f"{encode(json.dumps(header).encode())}.{encode(json.dumps(claims).encode())}"
        r, s = decode_dss_signature(self._key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{signed}.{encode(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"

    def _serve(self, asked: Asked, connection: Connection) -> None:
        status, body = self._answer(asked.target, asked.get("authorization") or "")
        connection.respond(status, [("Content-Type", "application/json")], body, asked.method == "HEAD")

    def _answer(self, path: str, authorization: str) -> Tuple[int, bytes]:
        user, _, password = base64.b64decode(authorization.partition(" ")[2]).decode().partition(":")
        known = user in self.users and self.users[user] == password
        if not known and (authorization or not self.gives_to_anybody):
            return 401, REFUSAL
        query = parse_qs(urlsplit(path).query)
        access = []
        for scope in query.get("scope", []):
            kind, _, rest = scope.partition(":")
            name, _, actions = rest.rpartition(":")
            allowed = actions.split(",") if known else ["pull"] if name in self.public else []
            access.append({"type": kind, "name": name, "actions": allowed})
        token = self.token(user, query.get("service", [""])[0], access)
        self.issued.append(token)
        return 200, json.dumps({"token": token, "expires_in": 300}).encode()
