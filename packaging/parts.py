"""The files of dduct, found from the sources, so that there is no separate list to maintain."""

from __future__ import annotations

import ast
import os
import re
import subprocess
from pathlib import Path
from typing import Iterator, List

ROOT = Path(__file__).resolve().parent.parent

# Data files that the program reads, relative to its modules (in an archive, too).
DATA = ["pages/setup.sh"]

DOCUMENTS = ["README.md", "ARCHITECTURE.md", "SECURITY.md", "CHANGELOG.md", "LICENSE"]

_1980 = 315532800  # no archive format has an earlier time


def version() -> str:
    """The version in dduct.py, which is stated nowhere else."""
    for node in ast.parse((ROOT / "dduct.py").read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "VERSION":
            return str(ast.literal_eval(node.value))
    raise SystemExit("dduct.py has no VERSION")


def moment() -> int:
    """The time of these sources, in seconds since 1970: SOURCE_DATE_EPOCH, or the last commit's time."""
    given = os.environ.get("SOURCE_DATE_EPOCH", "")
    if given.isdigit():
        return max(_1980, int(given))
    if not (ROOT / ".git").exists():
        return _1980
    command = ["git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT), "log", "-1", "--format=%ct"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    return int(done.stdout) if done.returncode == 0 else _1980


def modules(start: str = "dduct.py") -> List[str]:
    """The program's own modules that `start` needs, including itself, by their paths below ROOT."""
    found = [start]
    for path in found:
        found += sorted(set(_imports(ROOT / path)) - set(found))
    return sorted(found)


def program() -> List[str]:
    """The files that the running program needs, by their paths below ROOT."""
    return [*modules(), *DATA]


def documents() -> List[str]:
    """DOCUMENTS, and all files that they and one another link to."""
    found = list(DOCUMENTS)
    for name in found:
        links = _links(ROOT / name) if name.endswith(".md") else []
        found += sorted({link for link in links if (ROOT / link).is_file()} - set(found))
    return sorted(found)


def _links(document: Path) -> Iterator[str]:
    """The paths below the repository that a document links to, existing or not."""
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text("utf-8")):
        yield os.path.relpath(os.path.normpath(document.parent / target), ROOT)


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        names: List[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            place = name.replace(".", "/")
            candidates = [f"{place}.py", f"{place}/__init__.py", f"{os.path.dirname(place)}/__init__.py"]
            yield from (candidate for candidate in candidates if (ROOT / candidate).is_file())


if __name__ == "__main__":
    print(version())
