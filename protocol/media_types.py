"""Which Content-Types an archive, a package or a layer never has: pages to log in are not kept under their names.

Only what is decisive is here. Small servers call an archive text/plain, application/octet-stream or another archive;
none calls it HTML or JSON, unless what is compressed in it is that (Apache: `x.json.gz`, Content-Encoding).
"""

from __future__ import annotations

from typing import Optional

# By the end of a name.
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
    """Whether it is HTML."""
    return essence(content_type) in _PAGES


def is_textual(content_type: Optional[bytes]) -> bool:
    """Whether it may be a page, a document or an error, for people or for programs; so may what has no type."""
    kind = essence(content_type)
    return not kind or kind.startswith(b"text/") or kind in _PAGES or _is_json(kind) or kind in _DOCUMENTS


def contradicts(path: str, by_digest: bool, content_type: Optional[bytes]) -> bool:
    """Whether what is called like that is surely no object of this path.

    `by_digest`: its path names the digest of what it is. That may be a JSON document (a manifest, a configuration), and
    proves to be it; HTML is a page in its place, which its client is to see.
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
