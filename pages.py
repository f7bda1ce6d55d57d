"""What dduct answers in its own name."""

from __future__ import annotations

from dataclasses import dataclass

from http1 import Field, RequestHead
from policy import OWN_PATHS


@dataclass(frozen=True)
class Page:
    """A whole response."""

    status: int
    fields: tuple[Field, ...]
    body: bytes


def page(request: RequestHead, path: str, ca_pem: bytes) -> Page:
    """The page at `path`; `ca_pem` is the certificate that clients are to trust."""
    if path not in OWN_PATHS:
        return _text(404, f"dduct: no such page; there are {', '.join(sorted(OWN_PATHS))}\n")
    if request.method not in (b"GET", b"HEAD"):
        return _text(405, f"dduct: {path} is to be read only\n", (b"Allow", b"GET, HEAD"))
    if path == "/ca.crt":
        return Page(
            200,
            (
                (b"Content-Type", b"application/x-x509-ca-cert"),
                (b"Content-Disposition", b'attachment; filename="dduct.crt"'),
                (b"Cache-Control", b"no-cache"),
            ),
            ca_pem,
        )
    return _text(200, "ok\n", (b"Cache-Control", b"no-store"))


def _text(status: int, text: str, *fields: Field) -> Page:
    return Page(status, ((b"Content-Type", b"text/plain; charset=utf-8"), *fields), text.encode())
