"""What is wrong in cert_dir is refused in one line, or repaired; inspecting it touches nothing."""

from __future__ import annotations

import errno
import os
import shutil
import ssl
from datetime import timedelta
from pathlib import Path
from typing import Callable, Dict, Optional, Tuple

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from support.cert_dirs import (
    FILES,
    SETTINGS,
    SMALL,
    complaint,
    content,
    names_in,
    put_own_authority,
    writes,
)
from support.certificates import (
    hand_made,
    key_pem,
    load,
    moment,
    openssl,
    own_key,
    pem,
)
from support.pairs import TIMEOUT, in_thread

from certs import CertificateError, CertificateFiles, inspect, prepare


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with small RSA keys. Read only."""
    directory = tmp_path_factory.mktemp("small")
    prepare(directory, SMALL)
    return directory


REMEDIES = {"ca": ("backup", "delete ca.*"), "server": ("delete server.key, server.crt and server.p12", "restart")}
BROKEN: Dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "half-written": lambda data: data[: len(data) // 2],
    "one line short": lambda data: b"\n".join(data.split(b"\n")[:-2]),
    "garbage": lambda data: bytes(range(256)) * 4,
    "garbage inside": lambda data: data[:100] + b"!" * 64 + data[164:],
    "something else": lambda data: b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
}


def test_a_server_certificate_that_vanishes_meanwhile_is_named(copy: Path) -> None:
    """Between two reads of a start, or of a reload."""
    (copy / "server.crt").unlink()
    with pytest.raises(CertificateError, match=r"server\.crt"):
        CertificateFiles(copy).server_valid_from()


@pytest.mark.parametrize("how", list(BROKEN))
@pytest.mark.parametrize("name", ["ca.key", "ca.crt", "server.key", "server.crt", "client.crt"])
def test_a_damaged_file_is_refused_and_named(copy: Path, name: str, how: str) -> None:
    (copy / name).write_bytes(BROKEN[how]((copy / name).read_bytes()))
    line = complaint(copy, name, "delete", "restart", *REMEDIES.get(name.split(".")[0], ()))
    assert ("private key" if name.endswith(".key") else "certificate") in line


@pytest.mark.parametrize("who", ["ca", "server", "client"])
def test_a_key_that_is_not_the_certificates_is_refused(copy: Path, who: str) -> None:
    (copy / f"{who}.key").write_bytes(key_pem(own_key))
    line = complaint(copy, f"{who}.key", "is not the key of", *REMEDIES.get(who, ()))
    assert f'"{copy / f"{who}.crt"}"' in line


@pytest.mark.parametrize("who", ["ca", "server", "client"])
@pytest.mark.parametrize("missing", ["key", "crt"])
def test_a_certificate_or_key_without_the_other_is_refused(copy: Path, who: str, missing: str) -> None:
    (copy / f"{who}.{missing}").unlink()
    line = complaint(copy, f"{who}.{missing}", "is there without", *REMEDIES.get(who, ()))
    assert f'"{copy / who}.{"crt" if missing == "key" else "key"}"' in line


def test_an_expired_authority_is_refused_with_its_date(copy: Path) -> None:
    certificate = hand_made(own_key, ends=timedelta(days=-1))
    put_own_authority(copy, certificate)
    complaint(copy, "ca.crt", f"expired on {moment(certificate, 'not_valid_after'):%Y-%m-%d}", *REMEDIES["ca"])


def test_the_error_for_a_future_authority_mentions_the_clock(copy: Path) -> None:
    certificate = hand_made(own_key, starts=timedelta(days=3))
    put_own_authority(copy, certificate)
    complaint(copy, "ca.crt", f"not valid before {moment(certificate, 'not_valid_before'):%Y-%m-%d}", "clock")


def test_an_expired_server_certificate_is_refused_with_its_remedy(copy: Path) -> None:
    (copy / "server.key").write_bytes(key_pem(own_key))
    (copy / "server.crt").write_bytes(pem(hand_made(own_key, ends=timedelta(days=-1))))
    complaint(copy, "server.crt", "expired on", *REMEDIES["server"])


def test_an_authority_that_ends_soon_is_used_with_a_warning(tmp_path: Path) -> None:
    put_own_authority(tmp_path, hand_made(own_key, ends=timedelta(days=20)))
    with writes() as lines:
        prepare(tmp_path, SMALL)
    assert [line for line in lines if line.startswith(f'"{tmp_path / "ca.crt"}" expires on ')] != []


@pytest.mark.parametrize("ca", [False, None], ids=["says no", "does not say"])
def test_a_certificate_that_is_no_authority_is_refused(copy: Path, ca: Optional[bool]) -> None:
    put_own_authority(copy, hand_made(own_key, ca=ca))
    complaint(copy, "ca.crt", "no certificate authority", *REMEDIES["ca"])


@pytest.mark.parametrize("form", [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL])
def test_an_encrypted_key_is_refused_with_the_command_that_decrypts_it(copy: Path, form: PrivateFormat) -> None:
    put_own_authority(copy, hand_made(own_key))
    (copy / "ca.key").write_bytes(key_pem(own_key, form, BestAvailableEncryption(b"secret")))
    complaint(copy, "ca.key", "is encrypted", "openssl pkey -in ca.key")


def test_a_key_that_is_neither_rsa_nor_ec_is_refused(copy: Path) -> None:
    (copy / "ca.key").write_bytes(key_pem(ed25519.Ed25519PrivateKey.generate()))
    complaint(copy, "ca.key", "neither an RSA nor an EC key", *REMEDIES["ca"])


@pytest.mark.parametrize("common_name", ["own", SETTINGS.ca_cn], ids=["another name", "the same name"])
def test_a_server_certificate_of_another_authority_is_refused(copy: Path, common_name: str) -> None:
    put_own_authority(copy, hand_made(own_key, common_name))
    line = complaint(copy, "server.crt", "was not issued by", *REMEDIES["server"])
    assert f'"{copy / "ca.crt"}"' in line


OF_THE_AUTHORITY = ("ca.key", "ca.crt")


@pytest.mark.parametrize(
    "left",
    [
        tuple(name for name in FILES if name not in OF_THE_AUTHORITY),
        ("server.crt",),
        ("server.key",),
        ("client.p12",),
        ("client.crt", "client.key"),
    ],
)
def test_no_new_authority_is_made_if_the_old_one_is_missing(copy: Path, left: Tuple[str, ...]) -> None:
    for name in set(FILES) - set(left):
        (copy / name).unlink()
    before = content(copy)
    for act in (lambda: prepare(copy, SMALL), lambda: inspect(copy)):
        with pytest.raises(CertificateError) as caught:
            act()
        line = str(caught.value)
        assert "\n" not in line and f'misc.cert_dir "{copy}"' in line
        assert all(word in line for word in (*left, "neither ca.key nor ca.crt", "backup", "delete"))
        assert content(copy) == before


@pytest.mark.parametrize("name", ["ca.key", "ca.crt", "server.key", "client.crt"])
def test_a_link_to_nothing_is_refused_and_not_replaced(copy: Path, name: str) -> None:
    """What it leads to may just not be mounted."""
    (copy / name).unlink()
    (copy / name).symlink_to("/nowhere/at/all")
    with pytest.raises(CertificateError, match=rf'/{name}" is a link to "/nowhere/at/all", which is not there'):
        prepare(copy, SMALL)
    assert (copy / name).is_symlink()


@pytest.mark.parametrize("name", ["ca.key", "ca.crt"])
def test_certificate_and_key_as_links_to_nothing_are_refused(tmp_path: Path, name: str) -> None:
    for other in OF_THE_AUTHORITY:
        (tmp_path / other).symlink_to("/nowhere/at/all")
    with pytest.raises(CertificateError, match="is a link to"):
        prepare(tmp_path, SMALL)
    assert names_in(tmp_path) == ("ca.crt", "ca.key")


def test_a_directory_that_is_a_link_to_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "certs").symlink_to("not-mounted")
    with pytest.raises(CertificateError, match=r'misc\.cert_dir ".*/certs" is a link to "not-mounted"'):
        prepare(tmp_path / "certs", SMALL)


@pytest.mark.parametrize("name", ["ca.key", "ca.crt"])
def test_a_pipe_in_place_of_a_file_is_refused_and_not_waited_for(copy: Path, name: str) -> None:
    (copy / name).unlink()
    os.mkfifo(copy / name)
    with pytest.raises(CertificateError, match=rf'/{name}" is no regular file'):
        in_thread(prepare, copy, SMALL).result(TIMEOUT)


def test_a_file_too_large_for_a_certificate_is_refused(copy: Path) -> None:
    with (copy / "ca.crt").open("wb") as file:
        file.truncate(2 * 1024 * 1024)
    complaint(copy, "ca.crt", "too large", *REMEDIES["ca"])


def test_an_unfinished_first_start_does_not_block_the_next(tmp_path: Path) -> None:
    """No client can trust an authority whose certificate never got its name."""
    (tmp_path / ".ca.crt.pending").write_bytes(b"-----BEGIN")
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "README").touch()
    prepare(tmp_path, SMALL)
    assert set(FILES) < set(names_in(tmp_path)) and ".ca.crt.pending" not in names_in(tmp_path)


# --- looked at, and not touched -----------------------------------------------------------------


def test_inspecting_touches_nothing(elliptic: Path, tmp_path: Path) -> None:
    before = {path.name: (path.stat().st_mtime_ns, path.stat().st_mode) for path in elliptic.iterdir()}
    assert inspect(elliptic) == ()
    assert inspect(tmp_path / "new/deeper") == ()
    assert {path.name: (path.stat().st_mtime_ns, path.stat().st_mode) for path in elliptic.iterdir()} == before
    assert names_in(tmp_path) == ()


def test_inspecting_accepts_what_the_next_start_repairs(copy: Path) -> None:
    os.replace(copy / "ca.crt", copy / ".ca.crt.pending")
    before = content(copy)
    assert inspect(copy) == ()
    assert content(copy) == before


@pytest.mark.parametrize("name", ["ca.key", "ca.crt", "server.key", "client.crt"])
def test_inspecting_refuses_with_the_message_of_a_start(copy: Path, name: str) -> None:
    (copy / name).write_bytes(b"spoiled")
    with pytest.raises(CertificateError) as caught:
        inspect(copy)
    assert complaint(copy, name) == str(caught.value)


def test_inspecting_refuses_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in ("file", "file/certs"):
        with pytest.raises(CertificateError, match=r'cannot use ".*/file" in misc\.cert_dir: Not a directory'):
            inspect(tmp_path / place)


@pytest.mark.parametrize("permissions", [0o604, 0o640])
@pytest.mark.parametrize("name", ["ca.key", "server.key", "client.p12"])
def test_a_key_that_others_can_read_gets_a_warning(copy: Path, name: str, permissions: int) -> None:
    (copy / name).chmod(permissions)
    with writes() as lines:
        prepare(copy, SMALL)
    (line,) = lines
    assert inspect(copy) == (line,)
    assert str(copy / name) in line and f"{permissions:04o}" in line and "chmod 600" in line


def test_an_authority_that_may_not_sign_gets_a_warning(tmp_path: Path) -> None:
    done = openssl(
        *("req", "-x509", "-newkey", "rsa:1024", "-nodes", "-days", "90", "-subj", "/CN=mine"),
        *("-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=digitalSignature"),
        *("-keyout", tmp_path / "ca.key", "-out", tmp_path / "ca.crt"),
    )
    assert done.returncode == 0, done.stderr
    (line,) = inspect(tmp_path)
    assert "ca.crt" in line and "keyCertSign" in line


def test_a_directory_in_place_of_a_file_is_refused(copy: Path) -> None:
    (copy / "ca.key").unlink()
    (copy / "ca.key").mkdir()
    with pytest.raises(CertificateError, match=r'cannot use ".*/ca\.key" in misc\.cert_dir'):
        prepare(copy, SMALL)


def test_a_file_in_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "certs").write_bytes(b"")
    with pytest.raises(CertificateError, match=r'cannot use ".*/certs" in misc\.cert_dir'):
        prepare(tmp_path / "certs", SMALL)


# --- found by these tests ---------------------------------------------------------------------------


def test_a_start_that_broke_off_within_a_pair_is_repaired_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.replace

    def full(source: str, target: Path) -> None:
        if target.name == "ca.crt":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(CertificateError):
            prepare(tmp_path, SMALL)
    prepare(tmp_path, SMALL)
    assert names_in(tmp_path) == FILES


@pytest.mark.parametrize("name", ["ca", "server", "client"])
def test_a_start_that_was_killed_within_a_pair_is_repaired_by_the_next(copy: Path, name: str) -> None:
    before = (copy / f"{name}.crt").read_bytes()
    os.replace(copy / f"{name}.crt", copy / f".{name}.crt.pending")
    prepare(copy, SMALL)
    assert (copy / f"{name}.crt").read_bytes() == before
    assert names_in(copy) == FILES


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("ca.crt", b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01", b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x63"),  # kind of key
        ("server.crt", b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01", b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x63"),
        ("ca.crt", b"\x55\x1d\x13\x01\x01\xff\x04", b"\x55\x1d\x0f\x01\x01\xff\x04"),  # an extension twice
    ],
)
def test_a_certificate_with_damage_inside_is_refused(
    small: Path, tmp_path: Path, name: str, old: bytes, new: bytes
) -> None:
    shutil.copytree(small, tmp_path, dirs_exist_ok=True)
    der = load(small / name).public_bytes(Encoding.DER)
    assert old in der
    (tmp_path / name).write_text(ssl.DER_cert_to_PEM_cert(der.replace(old, new, 1)))
    complaint(tmp_path, name)


def test_a_directory_that_everybody_may_write_to_is_refused(tmp_path: Path) -> None:
    """An attacker who can write ca.key there can be every host."""
    place = tmp_path / "certs"
    place.mkdir()
    place.chmod(0o777)
    with pytest.raises(CertificateError, match="chmod 700"):
        prepare(place, SMALL)
    assert list(place.iterdir()) == []
