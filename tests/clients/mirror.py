"""An origin for package managers: fixed answers with validators, as the big indexes give them."""

from __future__ import annotations

import hashlib
from typing import Dict, List, Tuple

from support.origin import Asked, Connection

from clients.workshop import ORIGIN, Workshop

_FRESH = "public, max-age=0"


class Mirror:
    """What it holds is added path by path; all of it has to be validated each time, unless its fields say otherwise."""

    def __init__(self, workshop: Workshop) -> None:
        self._contents: Dict[Tuple[str, str], Tuple[bytes, List[Tuple[str, str]]]] = {}
        self.origin = workshop.origin(ORIGIN, self._serve)

    @property
    def url(self) -> str:
        return f"https://{ORIGIN}:{self.origin.port}"

    def add(self, path: str, data: bytes, *fields: Tuple[str, str], accept: str = "") -> None:
        """Serve bytes at a path; `accept`: to clients whose Accept has this media type, which then is theirs, too."""
        kind = [("Content-Type", accept), ("Vary", "Accept, Accept-Encoding")] if accept else []
        self._contents[path, accept] = data, [*kind, *(fields or [("Cache-Control", _FRESH)])]

    def asked(self, since: int = 0) -> List[str]:
        """The requests so far, without `since` of them: method and path."""
        return [f"{one.method} {one.target}" for one in self.origin.requests[since:]]

    def _serve(self, asked: Asked, connection: Connection) -> None:
        path, wanted = asked.target.partition("?")[0], asked.get("accept") or ""
        found = [content for (place, accept), content in self._contents.items() if place == path and accept in wanted]
        if not found:
            connection.respond(404)
            return
        data, fields = found[0]
        tag = ("ETag", f'"{hashlib.sha256(data).hexdigest()[:20]}"')
        if asked.get("if-none-match") == tag[1]:
            connection.head(304, [tag, *fields])
            return
        connection.respond(200, [tag, *fields], data, asked.method == "HEAD")
