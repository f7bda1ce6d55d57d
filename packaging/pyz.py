"""Build dduct.pyz: one file that needs Python and cryptography or, with --fat, Python alone.

Both kinds contain tomli, so that Python 3.9 and 3.10 need no package for it. The fat one also contains cryptography,
for one architecture and every supported Python; bundle.py unpacks it on the target. The build is reproducible.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import platform
import zipfile
from pathlib import Path
from typing import Dict, Tuple

import parts
from wheels import PYTHONS, Wheels

EPOCH = (1980, 1, 1, 0, 0, 0)
HERE = Path(__file__).resolve().parent
LIBRARY = "library/"  # bundle.py unpacks everything below it

# Runs on any Python, as it must report one that is too old.
MAIN = b"""import sys

if sys.version_info < (3, 9):
    sys.exit("dduct: Python 3.9 or newer is needed, and this is %d.%d" % sys.version_info[:2])

import bundle

bundle.provide()

from dduct import main

sys.exit(main())
"""

Files = Dict[str, bytes]


def thin(wheels: Wheels) -> Files:
    """The content of an archive that needs the system's cryptography."""
    files = {name: (parts.ROOT / name).read_bytes() for name in parts.program()}
    files["__main__.py"] = MAIN
    files["bundle.py"] = (HERE / "bundle.py").read_bytes()
    files["LICENSE"] = (parts.ROOT / "LICENSE").read_bytes()
    files.update(_wheel(wheels.any("tomli"), ""))
    return files


def fat(wheels: Wheels) -> Files:
    """The content of an archive that needs only Python, on `wheels.machine`."""
    files = thin(wheels)
    library = _wheel(wheels.abi3("cryptography"), LIBRARY)
    for python in PYTHONS:
        found = _wheel(wheels.binary("cffi", python), LIBRARY)
        # Only this part of cffi is used, and the licence is the same in each wheel.
        library.update({name: data for name, data in found.items() if "_cffi_backend" in name or "licenses/" in name})
    files.update(library)
    tags = ",".join("cpython-" + python.replace(".", "") for python in PYTHONS)
    files["library.txt"] = f"{wheels.machine} {_identity(library)} {tags}\n".encode()
    return files


def _wheel(path: Path, prefix: str) -> Files:
    """A wheel's files in an archive: code below `prefix`, licences below `licenses/`."""
    files = {}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith((".py", ".so")):
                files[prefix + name] = archive.read(name)
            elif ".dist-info/" in name and "LICENSE" in name.rpartition("/")[2]:
                package = name.partition("-")[0]
                files[f"licenses/{package}/{name.rpartition('/')[2]}"] = archive.read(name)
    return files


def _identity(library: Files) -> str:
    total = hashlib.sha256()
    for name in sorted(library):
        total.update(f"{name} {hashlib.sha256(library[name]).hexdigest()}\n".encode())
    return total.hexdigest()[:16]


def write(files: Files, target: Path) -> None:
    """Write the archive to `target`, executable."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, data in sorted(files.items()):
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, data, compresslevel=9)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(b"#!/usr/bin/env python3\n" + content.getvalue())
    target.chmod(0o755)


def _arguments() -> Tuple[bool, str, Path]:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fat", action="store_true")
    parser.add_argument("--machine", default=platform.machine(), help="x86_64 or aarch64; with --fat")
    parser.add_argument("target", type=Path)
    options = parser.parse_args()
    return options.fat, options.machine, options.target


def main() -> None:
    """Build the archive that the command line describes."""
    is_fat, machine, target = _arguments()
    wheels = Wheels(parts.ROOT / "build/wheels", machine)
    write(fat(wheels) if is_fat else thin(wheels), target)
    print(f"{target}: {target.stat().st_size} bytes")


if __name__ == "__main__":
    main()
