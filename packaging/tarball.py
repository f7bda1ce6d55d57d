"""Build dduct-X.Y.Z.tar.gz, to be unpacked and run, reproducibly from the same sources."""

from __future__ import annotations

import io
import struct
import sys
import tarfile
import zlib
from pathlib import Path
from typing import List

import parts

EXECUTABLE = {"dduct.py"}

# RFC 1952: deflate, slowest level, no time, unknown system; Python versions differ in the last one.
_GZIP_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\xff"


def contents() -> List[str]:
    """Every file, by its path below the repository, which is also its path below `dduct-X.Y.Z/`."""
    shipped = ["Containerfile", "container.toml", "dduct.service"]
    kubernetes = [
        path.name
        for path in (parts.ROOT / "packaging/kubernetes").glob("*")
        if path.suffix in (".md", ".toml", ".yaml")
    ]
    return sorted(
        {
            *parts.program(),
            *parts.documents(),
            ".dockerignore",
            "dduct.toml",
            "requirements.txt",
            *(f"packaging/{name}" for name in shipped),
            *(f"packaging/kubernetes/{name}" for name in kubernetes),
        }
    )


def build(directory: Path) -> Path:
    """Write the archive into `directory`; its path."""
    name = f"dduct-{parts.version()}"
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for path in contents():
            data = (parts.ROOT / path).read_bytes()
            entry = tarfile.TarInfo(f"{name}/{path}")
            entry.size, entry.mtime = len(data), parts.moment()
            entry.mode = 0o755 if path in EXECUTABLE or path.endswith(".sh") else 0o644
            entry.uname = entry.gname = "root"
            archive.addfile(entry, io.BytesIO(data))
    directory.mkdir(parents=True, exist_ok=True)
    target = directory / f"{name}.tar.gz"
    target.write_bytes(compressed(content.getvalue()))
    return target


def compressed(data: bytes) -> bytes:
    """Compress to the gzip format."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    body = deflate.compress(data) + deflate.flush()
    return _GZIP_HEADER + body + struct.pack("<II", zlib.crc32(data), len(data) & 0xFFFFFFFF)


if __name__ == "__main__":
    print(build(Path(sys.argv[1])))
