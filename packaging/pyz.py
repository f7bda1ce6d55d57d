"""Build dduct.pyz: one file that any python3 with cryptography runs. The same sources make the same bytes."""

from __future__ import annotations

import ast
import io
import sys
import zipfile
from pathlib import Path
from typing import Iterator, List

ROOT = Path(__file__).resolve().parent.parent
EPOCH = (1980, 1, 1, 0, 0, 0)
DATA = ["setup.sh"]  # what modules load from beside themselves
MAIN = b"import sys\n\nfrom dduct import main\n\nsys.exit(main())\n"


def modules(name: str = "dduct") -> List[str]:
    """The program's own modules that `name` needs, itself included."""
    found = [name]
    for module in found:
        found += sorted(set(_imports(ROOT / f"{module}.py")) - set(found))
    return sorted(found)


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        names: List[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        yield from (name for name in names if (ROOT / f"{name}.py").exists())


def build(target: Path) -> None:
    """Write the archive to `target`, executable."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        files = [*(f"{module}.py" for module in modules()), *DATA]
        for name, data in [("__main__.py", MAIN), *((file, (ROOT / file).read_bytes()) for file in files)]:
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, data)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(b"#!/usr/bin/env python3\n" + content.getvalue())
    target.chmod(0o755)


if __name__ == "__main__":
    build(Path(sys.argv[1]))
