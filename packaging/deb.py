"""Build dduct_X.Y.Z_all.deb with Debian's own tools (debhelper, dh-python), reproducibly from the same sources."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from email.utils import formatdate
from pathlib import Path

import parts
import tarball

HERE = Path(__file__).resolve().parent


def changelog(version: str, maintainer: str, moment: int) -> str:
    """The content of debian/changelog; changes are listed in CHANGELOG.md."""
    date = formatdate(moment, usegmt=True).replace("GMT", "+0000")
    return f"dduct ({version}) unstable; urgency=medium\n\n  * See CHANGELOG.md.\n\n -- {maintainer}  {date}\n"


def lay_out(directory: Path) -> Path:
    """Make the source tree for dpkg-buildpackage below `directory`; its path."""
    tree = directory / f"dduct-{parts.version()}"
    shutil.rmtree(tree, ignore_errors=True)
    for name in tarball.contents():
        target = tree / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(parts.ROOT / name, target)
    shutil.copytree(HERE / "debian", tree / "debian")
    shutil.copyfile(HERE / "dduct.service", tree / "debian/dduct.service")
    (tree / "debian/rules").chmod(0o755)
    (tree / "debian/source").mkdir()
    (tree / "debian/source/format").write_text("3.0 (native)\n")
    control = (tree / "debian/control").read_text("utf-8")
    maintainer = next(line.partition(": ")[2] for line in control.splitlines() if line.startswith("Maintainer: "))
    (tree / "debian/changelog").write_text(changelog(parts.version(), maintainer, parts.moment()))
    return tree


def build(target: Path) -> Path:
    """Build the package into `target`; its path."""
    if shutil.which("dpkg-buildpackage") is None:
        raise SystemExit("dpkg-buildpackage is missing: apt install dpkg-dev debhelper dh-python")
    tree = lay_out(parts.ROOT / "build/deb")
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(parts.moment()), "LC_ALL": "C.UTF-8"}
    environment["PATH"] = "/usr/sbin:/usr/bin:/sbin:/bin"  # the Python that debhelper is for
    command = ["dpkg-buildpackage", "--build=binary", "--unsigned-changes", "--no-pre-clean"]
    log = tree.parent / "log"
    with log.open("wb") as output:
        done = subprocess.run(
            command, cwd=tree, env=environment, stdout=output, stderr=output, check=False, timeout=600
        )
    if done.returncode != 0:
        raise SystemExit(f"{log.read_text()}\ndpkg-buildpackage ended with {done.returncode}")
    target.mkdir(parents=True, exist_ok=True)
    name = f"dduct_{parts.version()}_all.deb"
    return Path(shutil.copy(tree.parent / name, target / name))


if __name__ == "__main__":
    print(build(Path(sys.argv[1])))
