"""Build dduct-X.Y.Z.tar.gz, to be unpacked and run. The same sources make the same bytes."""

from __future__ import annotations

import gzip
import io
import sys
import tarfile
from pathlib import Path
from typing import List

import parts

EXECUTABLE = {"dduct.py"}


def contents() -> List[str]:
    """Every file, by its path below the repository, which is also the one below `dduct-X.Y.Z/`."""
    shipped = ["Containerfile", "container.toml", "dduct.service"]
    kubernetes = [
        path.name
        for path in (parts.ROOT / "packaging/kubernetes").glob("*")
        if path.suffix in (".md", ".toml", ".yaml")
    ]
    return sorted(
        [
            *parts.program(),
            *parts.DOCUMENTS,
            ".dockerignore",
            "dduct.toml",
            "requirements.txt",
            *(f"packaging/{name}" for name in shipped),
            *(f"packaging/kubernetes/{name}" for name in kubernetes),
        ]
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
    target.write_bytes(gzip.compress(content.getvalue(), 9, mtime=0))
    return target


if __name__ == "__main__":
    print(build(Path(sys.argv[1])))
