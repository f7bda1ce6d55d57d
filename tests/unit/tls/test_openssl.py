"""What OpenSSL is told without `ssl`."""

from __future__ import annotations

import errno
import os
import socket
import ssl
import sys
from pathlib import Path
from typing import Callable, Iterator, List, Optional

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from support.pairs import HOST, meet

from tls import openssl
from tls.authority import CertificateAuthority
from tls.openssl import has_aes, let_kernel_encrypt, prefer_aes_128, server_context, share_tickets, suites

FAST = "TLS_AES_128_GCM_SHA256"


@pytest.fixture(autouse=True)
def nothing_is_remembered() -> Iterator[None]:
    for function in (has_aes, openssl._library):
        function.cache_clear()
    yield
    for function in (has_aes, openssl._library):
        function.cache_clear()


def processor(monkeypatch: pytest.MonkeyPatch, path: Path, features: str) -> None:
    path.write_text(features)
    monkeypatch.setattr("tls.openssl._CPUINFO", path)


@pytest.mark.parametrize("protocol", [ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT])
def test_aes_128_comes_first_and_nothing_is_lost(
    protocol: ssl._SSLMethod, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    processor(monkeypatch, tmp_path / "cpuinfo", "model name\t: x\nflags\t\t: fpu aes sse2\n")
    context = ssl.SSLContext(protocol)
    before = suites(context)
    prefer_aes_128(context)
    assert suites(context)[0] == FAST
    assert suites(context)[1:] == [name for name in before if name != FAST]


@pytest.mark.parametrize("features", ["", "flags\t\t: fpu sse2\n", "bugs\t: aes\n", "Features\t: fp asimd\n"])
def test_without_aes_the_order_stays(features: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    processor(monkeypatch, tmp_path / "cpuinfo", features)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    before = suites(context)
    prefer_aes_128(context)
    assert suites(context) == before


def test_aes_support_is_detected_on_arm_too(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    assert not has_aes(cpuinfo)
    has_aes.cache_clear()
    cpuinfo.write_text("processor\t: 0\nFeatures\t: fp asimd aes pmull\n")
    assert has_aes(cpuinfo)


def test_a_missing_cipher_suite_is_not_added(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    processor(monkeypatch, tmp_path / "cpuinfo", "flags\t\t: aes\n")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    monkeypatch.setattr("tls.openssl.suites", lambda _: ["TLS_AES_256_GCM_SHA384"])
    monkeypatch.setattr("tls.openssl._library", lambda: pytest.fail("there is nothing to put in order"))
    prefer_aes_128(context)


def test_a_python_with_set_ciphersuites_uses_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """3.15 and later."""
    processor(monkeypatch, tmp_path / "cpuinfo", "flags\t\t: aes\n")
    wanted: List[str] = []

    class Context(ssl.SSLContext):
        def set_ciphersuites(self, names: str) -> None:
            wanted.append(names)

    monkeypatch.setattr("tls.openssl._LAYOUT_KNOWN", False)
    context = Context(ssl.PROTOCOL_TLS_SERVER)
    prefer_aes_128(context)
    assert wanted[0].split(":")[0] == FAST and sorted(wanted[0].split(":")) == sorted(suites(context))


@pytest.mark.parametrize("missing", ["the layout", "the file", "the library", "the function", "ctypes"])
def test_the_order_stays_where_it_cannot_be_set(missing: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    processor(monkeypatch, tmp_path / "cpuinfo", "flags\t\t: aes\n")

    class Spec:
        origin = {"the file": "built-in", "the library": str(tmp_path / "_ssl.so")}.get(missing, _ctypes_file())

    if missing == "the layout":
        monkeypatch.setattr("tls.openssl._LAYOUT_KNOWN", False)
    elif missing == "ctypes":
        monkeypatch.setitem(sys.modules, "ctypes", None)
    else:
        monkeypatch.setattr("importlib.util.find_spec", lambda _: Spec)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    before = suites(context)
    prefer_aes_128(context)
    assert suites(context) == before


def _ctypes_file() -> str:
    """A library that knows nothing of TLS."""
    import _ctypes

    return str(_ctypes.__file__)


# --- tickets ------------------------------------------------------------------------------------

Make = Callable[[Optional[bytes]], ssl.SSLContext]


@pytest.fixture
def server(origin_authority: CertificateAuthority) -> Make:
    """Makes a server, all of which have one certificate, and such a secret if any."""
    key = ec.generate_private_key(ec.SECP256R1())
    pair = origin_authority.issue_leaf(key, HOST, 30)

    def make(secret: Optional[bytes]) -> ssl.SSLContext:
        context = server_context(pair.certificate_pem + pair.key_pem)
        if secret is not None:
            share_tickets(context, secret)
        return context

    return make


@pytest.fixture
def client(origin_authority: CertificateAuthority) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=origin_authority.pem.decode())


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize(
    ("first", "second", "resumed"),
    [(b"x", b"x", True), (b"x", b"y", False), (None, None, False), (b"x", None, False)],
)
def test_a_session_is_resumed_where_the_secret_is_the_same(
    server: Make,
    client: ssl.SSLContext,
    first: Optional[bytes],
    second: Optional[bytes],
    resumed: bool,
    version: ssl.TLSVersion,
) -> None:
    client.maximum_version = version
    before = meet(server(first), client)
    assert before.version() == version.name.replace("_", ".") and not before.session_reused
    assert meet(server(second), client, before.session).session_reused is resumed


def test_where_keys_cannot_be_set_each_context_resumes_its_own_sessions(
    server: Make, client: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tls.openssl._LAYOUT_KNOWN", False)
    context = server(b"x")
    before = meet(context, client)
    assert meet(context, client, before.session).session_reused
    assert not meet(server(b"x"), client, before.session).session_reused


# --- TLS by the kernel --------------------------------------------------------------------------

OP_ENABLE_KTLS = 1 << 3


@pytest.mark.skipif(ssl.OPENSSL_VERSION_INFO < (3,), reason="OpenSSL before 3 leaves the kernel out")
@pytest.mark.parametrize(
    ("said", "asked"),
    [
        (errno.ENOENT, False),
        (errno.ENOPROTOOPT, False),
        (errno.EPERM, False),
        (errno.ENOTCONN, True),
        (524, True),
        (0, True),
    ],
)
def test_kernel_tls_is_enabled_only_if_the_kernel_has_it(
    monkeypatch: pytest.MonkeyPatch, said: int, asked: bool
) -> None:
    def setsockopt(sock: socket.socket, level: int, option: int, value: bytes) -> None:
        assert (level, option, value) == (socket.IPPROTO_TCP, 31, b"tls")
        if said:
            raise OSError(said, os.strerror(said))

    monkeypatch.setattr(socket.socket, "setsockopt", setsockopt)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    let_kernel_encrypt(context)
    assert bool(context.options & OP_ENABLE_KTLS) is asked


def test_a_probe_without_a_descriptor_reports_no_kernel_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    monkeypatch.setattr("tls.openssl.socket.socket", refuse)
    let_kernel_encrypt(context)
    assert not context.options & OP_ENABLE_KTLS


@pytest.mark.skipif(ssl.OPENSSL_VERSION_INFO < (3,), reason="OpenSSL before 3 leaves the kernel out")
def test_the_probe_agrees_with_this_kernel() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    let_kernel_encrypt(context)
    known = Path("/proc/sys/net/ipv4/tcp_available_ulp").read_text().split()
    assert bool(context.options & OP_ENABLE_KTLS) is ("tls" in known)
