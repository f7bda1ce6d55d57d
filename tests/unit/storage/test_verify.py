"""Stored bytes compared with their hash: on the way to a client, and all at once."""

from __future__ import annotations

import hashlib
import os
import random
from dataclasses import replace
from pathlib import Path
from typing import List, Optional, Tuple

import pytest

import dduct
from cache import Cache, Lead
from storage.entry import Entry, Lost
from storage.locks import try_lock
from storage.record import Digest, Metadata, Record
from storage.store import Key
from storage.verify import Findings, total, verify
from transfers.hold_back import HOLD_BACK
from transfers.recheck import VerifyingReader
from transfers.states import FillFailed

META = Metadata("https://h/x", (), 1000.0)
BODY = random.Random(0).randbytes(3 * HOLD_BACK)  # whose hash is known not to begin like that of `misplaced`


def publish(cache: Cache, name: str, body: bytes, digest: Optional[Digest] = None) -> Path:
    """A stored object; where it lies."""
    key = Key(name, digest)
    claim = cache.claim(key)
    assert isinstance(claim, Lead)
    claim.fill.start(META, len(body))
    if body:
        claim.fill.write(memoryview(body))
    claim.fill.publish()
    claim.fill.make_durable()
    claim.fill.close()
    return Path(cache.store.paths(key).object)


def distrust(path: Path) -> None:
    """As after a power cut."""
    record = Record.decode(os.getxattr(path, "user.dduct"))
    os.setxattr(path, "user.dduct", replace(record, boot="earlier", durable=False).encode())


def damage(path: Path, offset: int = 5) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path)


def opened(cache: Cache, path: Path) -> Entry:
    entry = cache.store.open_entry(str(path))
    assert entry is not None and not entry.trusted
    return entry


def read(source: VerifyingReader, size: int = 50_000, offset: int = 0) -> bytes:
    pieces: List[bytes] = []
    view = memoryview(bytearray(size))
    source.ready(offset, not offset)
    while True:
        count = source.read_at(view, offset)
        if not count:
            return b"".join(pieces)
        pieces.append(bytes(view[:count]))
        offset += count


@pytest.mark.parametrize("size", [1, 50_000, HOLD_BACK, 10**6])
@pytest.mark.parametrize("offset", [0, 1, len(BODY) - 1])
def test_an_object_with_the_right_hash_is_sent_and_trusted_afterwards(cache: Cache, size: int, offset: int) -> None:
    if size == 1 and offset <= 1:
        offset = len(BODY) - 10
    path = publish(cache, "https/h/x", BODY)
    distrust(path)
    entry = opened(cache, path)
    assert read(VerifyingReader(entry), size, offset) == BODY[offset:]
    entry.close()
    again = cache.store.open_entry(str(path))
    assert again is not None and again.trusted and again.record.durable
    again.close()


@pytest.mark.parametrize("where", [0, HOLD_BACK, len(BODY) - 1])
def test_no_client_gets_a_complete_wrong_object(cache: Cache, where: int) -> None:
    path = publish(cache, "https/h/x", BODY)
    distrust(path)
    damage(path, where)
    entry = opened(cache, path)
    source = VerifyingReader(entry)
    received = 0
    with pytest.raises(FillFailed, match="damaged"):
        while received < len(BODY):
            received += source.read_at(memoryview(bytearray(50_000)), received)
    assert 0 < received <= len(BODY) - HOLD_BACK
    entry.close()
    assert not path.exists()


@pytest.mark.parametrize(("size", "offset"), [(1000, 0), (HOLD_BACK, 0), (len(BODY), 7)])
def test_a_wrong_object_is_fetched_again_if_no_byte_was_sent(cache: Cache, size: int, offset: int) -> None:
    path = publish(cache, "https/h/x", BODY[:size])
    distrust(path)
    damage(path)
    entry = opened(cache, path)
    with pytest.raises(Lost, match="damaged"):
        VerifyingReader(entry).ready(offset, not offset)
    entry.close()
    assert not path.exists()


def test_an_empty_object_verifies(cache: Cache) -> None:
    path = publish(cache, "https/h/x", b"")
    distrust(path)
    entry = opened(cache, path)
    assert read(VerifyingReader(entry)) == b""
    entry.close()


# --- all of them --------------------------------------------------------------------------------------


@pytest.fixture
def lines() -> List[str]:
    return []


@pytest.fixture
def shelf(cache: Cache, tmp_path: Path) -> List[Path]:
    """Eight objects, four of which are damaged."""
    paths = [publish(cache, f"https/h/{number}", BODY + bytes([number])) for number in range(4)]
    blob = publish(cache, "https/h/v2/blob", BODY, Digest("sha256", hashlib.sha256(BODY).hexdigest()))
    truncated, zeroed, unreadable, misplaced = paths
    os.truncate(truncated, 100)
    zeroed.write_bytes(bytes(len(BODY) + 1))
    os.setxattr(unreadable, "user.dduct", b"garbage")
    other = tmp_path / "sha256/aa" / ("a" * 64)
    other.parent.mkdir()
    os.rename(misplaced, other)
    (tmp_path / "https/h/by-hand.deb").write_bytes(b"12345")
    (tmp_path / "https/h/growing.dduct").write_bytes(b"x")
    right = publish(cache, "https/h/right", b"")
    return [truncated, zeroed, unreadable, other, blob, right]


def test_verify_reads_every_object(shelf: List[Path], tmp_path: Path, lines: List[str]) -> None:
    seen: List[int] = []
    found = verify(tmp_path, False, lambda findings: seen.append(findings.bytes_read), lines.append)
    # The alias of the blob is a file, too.
    assert (found.right, found.foreign, found.damaged, found.removed) == (3, 1, 4, 0)
    assert sorted(line.split(": ")[0] for line in lines) == sorted(str(path) for path in shelf[:4])
    assert seen == sorted(seen) and found.bytes_read <= total(tmp_path)
    assert all(path.exists() for path in shelf)


def test_verify_removes_damaged_objects_on_request(shelf: List[Path], tmp_path: Path, lines: List[str]) -> None:
    found = verify(tmp_path, True, lambda _: None, lines.append)
    assert (found.damaged, found.removed) == (4, 4)
    assert [path.exists() for path in shelf] == [False] * 4 + [True] * 2
    again = verify(tmp_path, False, lambda _: None, lines.append)
    assert again == Findings(again.bytes_read, right=3, foreign=1)


def test_a_file_copied_in_by_hand_stays_foreign_after_a_validation(
    cache: Cache, tmp_path: Path, lines: List[str]
) -> None:
    """Its record then has fields, and still no hash."""
    path = tmp_path / "https/h/by-hand.deb"
    path.parent.mkdir(parents=True)
    path.write_bytes(BODY)
    entry = cache.store.open_entry(str(path))
    assert entry is not None
    cache.refresh(entry, entry.record.metadata)
    entry.close()
    found = verify(tmp_path, True, lambda _: None, lines.append)
    assert (found.foreign, found.damaged) == (1, 0) and path.read_bytes() == BODY


def test_verify_removes_an_object_that_was_not_hashed_before_a_crash(
    cache: Cache, tmp_path: Path, lines: List[str]
) -> None:
    path = publish(cache, "https/h/x.deb", BODY)
    record = Record.decode(os.getxattr(path, "user.dduct"))
    late = replace(record, sha256="", unhashed=True, durable=False)
    os.setxattr(path, "user.dduct", late.encode())
    assert verify(tmp_path, True, lambda _: None, lines.append).foreign == 1  # a process may still hash it
    os.setxattr(path, "user.dduct", replace(late, boot="earlier").encode())
    with path.open("rb") as elsewhere:
        assert try_lock(elsewhere.fileno())
        assert verify(tmp_path, True, lambda _: None, lines.append).foreign == 1  # for certain
    assert verify(tmp_path, True, lambda _: None, lines.append).removed == 1
    assert lines == [f"{path}: the machine went down before its bytes were hashed"]


@pytest.mark.parametrize("algorithm", ["sha256", "sha512", "blake2b"])
@pytest.mark.parametrize("wrong", [False, True])
def test_a_name_that_is_a_digest_is_compared_with_the_bytes(
    cache: Cache, tmp_path: Path, lines: List[str], algorithm: str, wrong: bool
) -> None:
    digest = Digest(algorithm, hashlib.new(algorithm, BODY).hexdigest())
    path = publish(cache, "https/h/blob", BODY, digest)
    assert path.parent.parent.name == algorithm
    if wrong:
        path = path.rename(path.with_name(path.name[:2] + path.name[:1:-1]))
    found = verify(tmp_path, False, lambda _: None, lines.append)
    assert (found.right, found.damaged) == ((1, 1) if wrong else (2, 0))  # the alias is a file, too
    assert lines == ([f"{path}: its bytes do not match the digest in its name"] if wrong else [])


def test_a_name_that_no_bytes_can_have_is_damage(cache: Cache, tmp_path: Path, lines: List[str]) -> None:
    path = publish(cache, "https/h/x", BODY)
    odd = tmp_path / "blake2b/ab/abc"
    odd.parent.mkdir(parents=True)
    path.rename(odd)
    assert verify(tmp_path, False, lambda _: None, lines.append).damaged == 1
    assert lines == [f"{odd}: its bytes do not match the digest in its name"]


def test_verify_runs_from_the_command_line(
    shelf: List[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configuration = tmp_path.parent / f"{tmp_path.name}.toml"
    configuration.write_text(f"[misc]\nfile_dir = '{tmp_path}'\n")

    def run(*arguments: str) -> Tuple[int, str, str]:
        status = dduct.main(["verify", *arguments, "--cfg", str(configuration)])
        return (status, *capsys.readouterr())

    try:
        status, out, error = run()
        assert (status, error) == (1, "")
        assert f"{shelf[0]}: 100 bytes instead of {len(BODY) + 1}\n" in out
        assert "3 right, 4 damaged (0 removed), 1 without a hash; 0.6 MB" in out
        status, out, _ = run("--fix")
        assert status == 0 and "4 damaged (4 removed)" in out
        assert run()[1].startswith("3 right, 0 damaged (0 removed), 1 without a hash")
        configuration.write_text("[misc]\nfile_dir = '/nowhere/at/all'\n")
        assert run()[0] == 2
    finally:
        configuration.unlink()
