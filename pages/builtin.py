"""Built-in pages: responses that dduct makes itself."""

from __future__ import annotations

from dataclasses import dataclass

from monitoring.metrics import Counters
from net.arrival import Arrival
from pages import setup
from pages.setup import About
from protocol.headers import Field
from protocol.http1 import RequestHead

MIRROR = "/v2/"  # what clients of a registry ask for first; a page only where dduct itself is asked
OWN_PATHS = frozenset(["/ca.crt", "/healthz", "/metrics", "/setup", "/setup/sh"])


@dataclass(frozen=True)
class Page:
    """A complete response."""

    status: int
    fields: tuple[Field, ...]
    body: bytes


def page(request: RequestHead, path: str, arrival: Arrival, about: About, counters: Counters) -> Page:
    """The page at `path`, for a request that arrived at `arrival`."""
    if path == MIRROR:
        return _mirror(request, arrival)
    if path not in OWN_PATHS:
        return _text(404, f"dduct: no such page; there are {', '.join(sorted(OWN_PATHS))}\n")
    if request.method not in (b"GET", b"HEAD"):
        return _text(405, f"dduct: {path} can only be read\n", (b"Allow", b"GET, HEAD"))
    if path == "/ca.crt":
        return Page(
            200,
            (
                (b"Content-Type", b"application/x-x509-ca-cert"),
                (b"Content-Disposition", b'attachment; filename="dduct.crt"'),
                (b"Cache-Control", b"no-cache"),
            ),
            about.ca_pem,
        )
    if path in ("/setup", "/setup/sh"):
        # The page depends on the client and its arrival, so it must not be stored.
        fresh, proxy = (b"Cache-Control", b"no-store"), setup.reached(request, arrival)
        if path == "/setup":
            return Page(200, ((b"Content-Type", b"text/html; charset=utf-8"), fresh), setup.page(proxy, about))
        # A browser shows plain text, so that users can read the script before they run it.
        return Page(200, ((b"Content-Type", b"text/plain; charset=utf-8"), fresh), setup.script(proxy, about))
    if path == "/metrics":
        kind = (b"Content-Type", b"text/plain; version=0.0.4; charset=utf-8")
        return Page(200, (kind, (b"Cache-Control", b"no-store")), counters.render().encode())
    return _text(200, "ok\n", (b"Cache-Control", b"no-store"))


def _mirror(request: RequestHead, arrival: Arrival) -> Page:
    """That this is a mirror of registries, and that tokens for all of them come from here."""
    version = (b"Docker-Distribution-API-Version", b"registry/2.0")
    kind = (b"Content-Type", b"application/json")
    fresh = (b"Cache-Control", b"no-store")
    if b"authorization" in request.headers:
        return Page(200, (kind, version, fresh), b"{}")
    realm = f'Bearer realm="{setup.reached(request, arrival).url}/v2/token",service="dduct"'
    return Page(401, (kind, version, fresh, (b"WWW-Authenticate", realm.encode())), b'{"errors": []}')


# A page that makes a browser send TRACE must not see these fields (RFC 9110 §9.3.8).
_NOT_ECHOED = (b"authorization", b"cookie", b"proxy-authorization")


def max_forwards_reached(request: RequestHead) -> Page:
    """The answer to a TRACE or OPTIONS whose Max-Forwards is 0 (RFC 9110 §9.3.7, §9.3.8)."""
    if request.method == b"OPTIONS":
        return Page(200, ((b"Allow", b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS, TRACE, CONNECT"),), b"")
    line = b"%s %s HTTP/1.%d\r\n" % (request.method, request.target, request.version)
    lines = (b"%s: %s\r\n" % field for field in request.headers.without(_NOT_ECHOED))
    return Page(200, ((b"Content-Type", b"message/http"),), b"".join([line, *lines, b"\r\n"]))


def _text(status: int, text: str, *fields: Field) -> Page:
    return Page(status, ((b"Content-Type", b"text/plain; charset=utf-8"), *fields), text.encode())
