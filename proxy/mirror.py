"""Mirror mode: requests to dduct itself that are for a registry, as container runtimes send them to a mirror.

    /v2/library/app/manifests/1?ns=docker.io      containerd names the registry in a parameter
    /v2/docker.io/library/app/manifests/1         CRI-O and podman have a path in the mirror's location

Rules of this module:

* Pure: the target of a request and the listed hosts in, the target at the registry out.
* What comes out is what a client of the proxy would ask for, so it has the same name in the cache, and the same rules
  apply to it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Container, Optional, Tuple
from urllib.parse import unquote, unquote_plus

from protocol import http1
from protocol.http1 import Authority, ProtocolError, RequestHead, Target

BASE = "/v2/"
ISSUER = "/v2/token"  # where clients that name the registry in a path get their tokens; no registry has such a name
# The token for registries that want none: a client that has been told to bring one does so. It is never passed on.
ANONYMOUS = "dduct-none"
_HTTPS = 443
_PARAMETER = "ns"
# The name of this registry is not that of its host, and images without a folder are in `library`.
_DOCKER = "docker.io"
_DOCKER_HOSTS = (_DOCKER, "index.docker.io")
_DOCKER_REGISTRY = "registry-1.docker.io"
_NO_FOLDER = re.compile(r"[^/]+/(?:manifests|blobs|tags|referrers)/[^/]+")
_SCOPE = re.compile(r"repository:([^/]+)/(.+):([^:]*)")
_NAMELESS = "name the registry of an image: with ?ns=docker.io, or as in /v2/docker.io/library/alpine/manifests/latest"


class NoRegistry(Exception):
    """A request to the mirror that is for no registry; `status` is the answer's, the message its one line."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True)
class TokenScope:
    """What a client wants a token for: a repository of a registry, in the words of that registry (`scope`)."""

    registry: Authority
    scope: str


def registry_target(target: bytes, listed: Container[str]) -> Target:
    """The target at a registry of an origin-form target below `BASE`.

    Raises NoRegistry where it names none, or one that is not `listed`; ProtocolError where it is malformed.
    """
    path, query = http1.split_origin_form(target)
    name, rest = _named_by_query(query)
    if name is None:
        name, path = _named_by_path(path)
    registry = _registry(name, listed)
    if _is_docker(registry) and _NO_FOLDER.fullmatch(path[len(BASE) :]):
        path = f"{BASE}library/{path[len(BASE) :]}"
    return Target("https", registry, path, rest)


def token_scope(query: Optional[str], listed: Container[str]) -> TokenScope:
    """What the query of a request for a token (`ISSUER`) asks for. Raises NoRegistry."""
    parameters = [one.partition("=") for one in (query or "").split("&")]
    scopes = [unquote_plus(value) for name, _, value in parameters if name == "scope"]
    match = _SCOPE.fullmatch(scopes[0]) if len(scopes) == 1 else None
    if match is None:
        raise NoRegistry(400, "expected one scope, as in repository:docker.io/library/alpine:pull")
    name, repository, _ = match.groups()
    registry = _registry(name, listed)
    folder = "library/" if _is_docker(registry) and "/" not in repository else ""
    return TokenScope(registry, f"repository:{folder}{repository}:pull")


def without_empty_token(head: RequestHead) -> RequestHead:
    """The request without the token that stands for none."""
    if head.headers.get(b"authorization") != b"Bearer " + ANONYMOUS.encode():
        return head
    return replace(head, headers=head.headers.without([b"authorization"]))


def _named_by_query(query: Optional[str]) -> Tuple[Optional[str], Optional[str]]:
    """The registry that a query names, and the query without it."""
    values, others = [], []
    for one in [] if query is None else query.split("&"):
        name, _, value = one.partition("=")
        if unquote_plus(name) == _PARAMETER:
            values.append(unquote_plus(value))
        else:
            others.append(one)
    if len(values) > 1:
        raise NoRegistry(400, f"{_PARAMETER} names more than one registry")
    return (values[0], "&".join(others) or None) if values else (None, query)


def _named_by_path(path: str) -> Tuple[str, str]:
    """The registry that a path below BASE begins with, and the path without it."""
    name, _, rest = path[len(BASE) :].partition("/")
    name = unquote(name)
    if "." not in name.strip(".") and ":" not in name:
        raise NoRegistry(404, _NAMELESS)
    return name, BASE + rest


def _registry(name: str, listed: Container[str]) -> Authority:
    try:
        authority = http1.parse_authority(name.encode(), _HTTPS)
    except ProtocolError as error:
        raise NoRegistry(400, f"no name of a registry: {error}") from None
    if authority.host in _DOCKER_HOSTS and authority.port == _HTTPS:
        authority = Authority(_DOCKER_REGISTRY, _HTTPS)
    if authority.host not in listed:
        reason = f"{authority.host} is not in certs.server_dns_sans or certs.server_ip_sans: dduct is no mirror of it"
        raise NoRegistry(404, reason)
    return authority


def _is_docker(registry: Authority) -> bool:
    return registry.host == _DOCKER_REGISTRY
