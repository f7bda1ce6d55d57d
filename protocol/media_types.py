"""Media types: which ones a client accepts, and which ones an archive, a package or a layer never has.

Login pages are not stored under the names of the latter. Only unambiguous types count. Small servers send an archive
as text/plain, application/octet-stream or another archive; none sends it as HTML or JSON, unless the compressed file is
that (Apache: `x.json.gz`, Content-Encoding).
"""

from __future__ import annotations

import re
from typing import Optional

from protocol.headers import split_list

_NOT_ACCEPTED = re.compile(rb"(?i);[ \t]*q=0(?:\.0{0,3})?[ \t]*(?:;|$)")

# By file extension.
_ARCHIVES = frozenset(
    [
        *("7z", "aar", "apk", "apkovl", "appimage", "bz2", "cab", "conda", "crate", "ddeb", "deb", "dmg"),
        *("drpm", "ear", "egg", "exe", "flatpak", "gem", "gguf", "gz", "img", "iso", "jar", "lz", "lz4"),
        *("lzma", "msi", "msix", "nar", "npz", "nupkg", "ova", "parquet", "pkg", "pt", "qcow2", "rar", "raw"),
        *("rpm", "run", "safetensors", "snap", "snupkg", "squashfs", "tar", "tbz", "tbz2", "tgz", "tlz"),
        *("txz", "tzst", "udeb", "vhd", "vhdx", "vmdk", "vsix", "war", "wasm", "whl", "xz", "z", "zip"),
        "zst",
    ]
)
_PAGES = frozenset([b"text/html", b"application/xhtml+xml"])
_DOCUMENTS = frozenset([b"application/json", b"text/json", b"application/xml", b"application/javascript"])


def essence(content_type: Optional[bytes]) -> bytes:
    """A media type without its parameters (RFC 9110 §8.3.1); empty where there is none."""
    return (content_type or b"").partition(b";")[0].strip(b" \t").lower()


def is_page(content_type: Optional[bytes]) -> bool:
    """Whether the type is HTML."""
    return essence(content_type) in _PAGES


def is_textual(content_type: Optional[bytes]) -> bool:
    """Whether it may be a page, a document or an error, for people or for programs; a missing type may be any."""
    kind = essence(content_type)
    return not kind or kind.startswith(b"text/") or kind in _PAGES or _is_json(kind) or kind in _DOCUMENTS


def contradicts(path: str, by_digest: bool, content_type: Optional[bytes]) -> bool:
    """Whether this type proves that the response is not the object of this path.

    `by_digest`: the path names the object's digest. The object may then be a JSON document (a manifest, a
    configuration), which its digest verifies; HTML is a page in its place, which the client must see.
    """
    kind = essence(content_type)
    name = path.rpartition("/")[2].lower().split(".")
    archive = len(name) > 1 and name[-1] in _ARCHIVES
    compressed = name[-2] if archive else ""
    if kind in _PAGES:
        return by_digest or (archive and compressed not in ("html", "htm", "xhtml"))
    return archive and not by_digest and _is_json(kind) and "json" not in compressed


def _is_json(kind: bytes) -> bool:
    return kind in (b"application/json", b"text/json") or kind.endswith(b"+json")


def accepts(accept: Optional[bytes], kind: Optional[bytes]) -> bool:
    """Whether a client with such an Accept takes a media type (RFC 9110 §12.5.1); without Accept, it takes all."""
    wanted = split_list(accept or b"")
    if not wanted or kind is None:
        return True
    found, weight = essence(kind), 0
    ranges = {b"*/*": 1, found.partition(b"/")[0] + b"/*": 2, found: 3}
    taken = False
    for one in wanted:
        precision = ranges.get(essence(one), 0)
        if precision > weight:  # the most precise range decides
            weight, taken = precision, _NOT_ACCEPTED.search(one) is None
    return taken
