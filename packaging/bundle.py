"""Find cryptography for a .pyz: the system's, or the archive's own, unpacked once per user.

Shared libraries cannot be loaded from an archive. They are unpacked into a directory that only this user (and root) can
write to, including all its parents; a directory that others could have prepared is never used. The unpacking process
holds a lock, and a directory gets its final name once all its content is synced to the disk. A directory with that name
was complete then; every start still checks it, because systemd-tmpfiles removes old files from /var/tmp one by one.
"""

from __future__ import annotations

import fcntl
import importlib
import importlib.util
import os
import platform
import shutil
import stat
import sys
import zipfile
from contextlib import contextmanager
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Optional

OLDEST = (3, 4)  # the oldest cryptography that works
LIBRARY = "library/"
VARIABLE = "DDUCT_LIBRARY"
REMEDY = "apt install python3-cryptography, or as your system calls it"


class Carried(NamedTuple):
    """The description of an archive's library."""

    machine: str
    identity: str
    tags: List[str]


class Unusable(Exception):
    """A directory or a library that cannot be used, and why."""


def provide() -> None:
    """Make `cryptography` importable, or end the program with one line that names the remedy."""
    if _system_has_it():
        return
    carried = _carried()
    if carried is None:
        sys.exit(f"dduct: the Python package cryptography, 3.4 or newer, is needed: {REMEDY}")
    try:
        _check(carried)
        _use(_hold(_library(carried.identity)))
    except Unusable as error:
        sys.exit(f"dduct: {error}")


def _library(identity: str) -> Path:
    """The unpacked library, in the first usable directory. Raises Unusable."""
    reasons = []
    for place in _places():
        try:
            return _unpacked(Path(__file__).resolve().parent, identity, place)
        except (Unusable, OSError) as error:
            reasons.append(f"{place}: {getattr(error, 'strerror', None) or error}")
    raise Unusable(f"no room to unpack into ({'; '.join(reasons)}): set {VARIABLE} to a directory of your own")


# --- finding a library --------------------------------------------------------------------------


def _system_has_it() -> bool:
    if importlib.util.find_spec("cryptography") is None or importlib.util.find_spec("_cffi_backend") is None:
        return False
    try:
        numbers = importlib.import_module("cryptography").__version__.split(".")
        importlib.import_module("cryptography.x509")
    except ImportError:
        _forget()
        return False
    if tuple(map(int, numbers[:2])) >= OLDEST:
        return True
    _forget()
    return False


def _forget() -> None:
    """Drop the unusable modules, so that usable ones can be imported."""
    for name in list(sys.modules):
        if name.partition(".")[0] in ("cryptography", "_cffi_backend"):
            del sys.modules[name]


def _carried() -> Optional[Carried]:
    try:
        text = __loader__.get_data(f"{Path(__file__).parent}/library.txt").decode()  # type: ignore[name-defined]
    except OSError:
        return None
    machine, identity, tags = text.split()
    return Carried(machine, identity, tags.split(","))


def _check(carried: Carried) -> None:
    if platform.machine() != carried.machine:
        raise Unusable(f"this file is for {carried.machine}, and this machine is {platform.machine()}: {REMEDY}")
    if sys.implementation.cache_tag not in carried.tags:
        python = sys.implementation.cache_tag
        raise Unusable(f"this file has nothing for {python}, but for {', '.join(carried.tags)}: {REMEDY}")


def _use(library: Path) -> None:
    """Put it before the system's packages, and load it. Raises Unusable."""
    sys.path.insert(1, str(library))
    importlib.invalidate_caches()
    try:
        importlib.import_module("cryptography.x509")
    except ImportError as error:  # glibc is too old, or there is none
        raise Unusable(f"the cryptography of this file does not run here ({error}): {REMEDY}") from None


# --- unpacking ----------------------------------------------------------------------------------


def _places() -> Iterator[Path]:
    """The directories to try, best first. A service has no HOME, but may have a directory from systemd."""
    chosen = os.environ.get(VARIABLE)
    if chosen:
        yield Path(chosen).absolute()
        return
    given = os.environ.get("CACHE_DIRECTORY", "").partition(":")[0]
    if given:
        yield Path(given) / "library"
    home = os.environ.get("HOME", "")
    cache = os.environ.get("XDG_CACHE_HOME") or (f"{home}/.cache" if home.startswith("/") else "")
    if cache.startswith("/"):
        yield Path(cache) / "dduct"
    for directory in ("/var/tmp", "/tmp"):
        yield Path(directory) / f"dduct-{os.geteuid()}"


def _unpacked(archive: Path, identity: str, place: Path) -> Path:
    """The directory with the library in `place`, unpacked if missing. Raises Unusable, OSError."""
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    if place.is_symlink() and place.lstat().st_uid not in (0, os.geteuid()):
        raise Unusable("another user made this link")
    place = place.resolve()
    _check_ownership(place)
    library = place / identity
    with zipfile.ZipFile(archive) as content:
        sizes = {one.filename[len(LIBRARY) :]: one.file_size for one in _carried_files(content)}
    if _is_whole(library, sizes):
        return library
    if os.statvfs(place).f_flag & os.ST_NOEXEC:
        raise Unusable("mounted noexec")
    with _locked(place / ".lock"):
        if not _is_whole(library, sizes):
            _unpack(archive, place / f"{identity}.new", library)
    return library


def _carried_files(archive: zipfile.ZipFile) -> List[zipfile.ZipInfo]:
    return [one for one in archive.infolist() if one.filename.startswith(LIBRARY)]


def _is_whole(library: Path, sizes: Dict[str, int]) -> bool:
    try:
        return all((library / name).stat().st_size == size for name, size in sizes.items())
    except OSError:
        return False


def _hold(library: Path) -> Path:
    """Lock the library while this process runs: systemd-tmpfiles skips locked directories."""
    fcntl.flock(os.open(library, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), fcntl.LOCK_SH)
    return library


def _check_ownership(place: Path) -> None:
    """Check that only this user and root can write to `place` or replace it. Raises Unusable."""
    if place.stat().st_uid != os.geteuid():
        raise Unusable("it belongs to another user")
    for one in (place, *place.parents):
        status = one.stat()
        kept = one != place and status.st_mode & stat.S_ISVTX  # in /tmp, only owners can rename
        if status.st_uid not in (0, os.geteuid()) or (status.st_mode & 0o022 and not kept):
            raise Unusable(f"others may write to {one}")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _unpack(archive: Path, stage: Path, library: Path) -> None:
    """Unpack, under the lock. `stage` may hold a killed process's remains, `library` an incomplete older copy."""
    shutil.rmtree(stage, ignore_errors=True)
    try:
        with zipfile.ZipFile(archive) as content:
            for one in _carried_files(content):
                _write(stage / one.filename[len(LIBRARY) :], content.read(one))
        aged = library.with_suffix(".old")
        shutil.rmtree(aged, ignore_errors=True)
        if library.exists():
            os.replace(library, aged)  # others may run from it, and import more
        os.replace(stage, library)
        shutil.rmtree(aged, ignore_errors=True)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        raise


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
