"""Leaves: how they are made and kept, and what clients make of them in real handshakes."""

from __future__ import annotations

import gc
import ipaddress
import logging
import os
import ssl
import tempfile
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Callable, List, Optional

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from support.certificates import (
    assert_verifies,
    authority_identifier,
    hand_made,
    moment,
    openssl,
    own_key,
    pem,
    shake_hands,
    trusting,
    usages,
)
from support.pairs import SOON, TIMEOUT, in_thread, meet

from tls.authority import CertificateAuthority, KeyPair
from tls.leaf_certificates import LeafCertificateCache, LeafSettings

HOSTS = ("origin.test", "192.0.2.1", "2001:db8::1")
LEAF_DAYS = 30


@pytest.fixture(scope="module")
def leaves(authority: CertificateAuthority) -> LeafCertificateCache:
    return LeafCertificateCache(authority, LeafSettings(LEAF_DAYS))


@pytest.mark.parametrize("host", HOSTS)
def test_a_leaf_has_the_fields_that_clients_require(
    authority: CertificateAuthority, leaves: LeafCertificateCache, host: str
) -> None:
    leaf = leaves.certificate(host)
    extensions = leaf.extensions
    names = extensions.get_extension_for_class(x509.SubjectAlternativeName)
    expected = x509.DNSName(host) if host == "origin.test" else x509.IPAddress(ipaddress.ip_address(host))
    assert list(names.value) == [expected]
    assert not names.critical
    constraints = extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical and not constraints.value.ca
    usage = extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical and usage.value.digital_signature
    assert not usage.value.key_cert_sign and not usage.value.key_encipherment
    assert usages(leaf) == [ExtendedKeyUsageOID.SERVER_AUTH]
    ca_identifier = authority.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    assert authority_identifier(leaf) == ca_identifier.digest
    key = leaf.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name == "secp256r1"
    assert leaf.issuer == authority.certificate.subject
    assert authority.issued(leaf)


def test_a_leaf_begins_in_the_past_and_ends_after_its_days(leaves: LeafCertificateCache) -> None:
    leaf, now = leaves.certificate("origin.test"), datetime.now(timezone.utc)
    assert moment(leaf, "not_valid_before") <= now - timedelta(days=1)
    left = moment(leaf, "not_valid_after") - now
    assert timedelta(days=LEAF_DAYS - 2) - timedelta(minutes=10) < left <= timedelta(days=LEAF_DAYS)


def test_a_leaf_lives_no_longer_than_its_days(leaves: LeafCertificateCache) -> None:
    leaf = leaves.certificate("origin.test")
    life = moment(leaf, "not_valid_after") - moment(leaf, "not_valid_before")
    assert life <= timedelta(days=LEAF_DAYS)


@pytest.mark.parametrize("host", [*HOSTS, "a_b.origin.test", ".".join(["long"] * 40)])
def test_openssl_accepts_a_leaf_strictly(
    authority: CertificateAuthority, leaves: LeafCertificateCache, tmp_path: Path, host: str
) -> None:
    ca, path = tmp_path / "ca.crt", tmp_path / "leaf.pem"
    ca.write_bytes(authority.pem)
    path.write_bytes(pem(leaves.certificate(host)))
    check = "-verify_ip" if host in HOSTS[1:] else "-verify_hostname"
    assert_verifies(ca, path, "-purpose", "sslserver", check, host)
    assert openssl("verify", "-CAfile", ca, "-verify_hostname", "other.test", path).returncode != 0


def test_a_name_too_long_for_a_subject_stands_in_a_critical_extension(leaves: LeafCertificateCache) -> None:
    leaf = leaves.certificate(".".join(["long"] * 40))
    assert list(leaf.subject) == []
    assert leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).critical


def test_serial_numbers_differ(leaves: LeafCertificateCache) -> None:
    assert len({leaves.certificate(f"{number}.test").serial_number for number in range(20)}) == 20


class Mint:
    """Stands in for `issue_leaf`: counts, and lets a test do something while a leaf is minted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.hosts: List[str] = []
        self.before: Callable[[str], None] = lambda host: None
        real = CertificateAuthority.issue_leaf

        def issue_leaf(authority: CertificateAuthority, key: Any, host: str, *rest: Any) -> KeyPair:
            self.hosts.append(host)
            self.before(host)
            return real(authority, key, host, *rest)

        monkeypatch.setattr(CertificateAuthority, "issue_leaf", issue_leaf)


@pytest.fixture
def mint(monkeypatch: pytest.MonkeyPatch, authority: CertificateAuthority) -> Mint:
    return Mint(monkeypatch)


def test_a_host_keeps_its_context(authority: CertificateAuthority, mint: Mint) -> None:
    store = LeafCertificateCache(authority, LeafSettings(LEAF_DAYS))
    contexts = [store.context("a"), store.context("b"), store.context("a")]
    assert contexts[0] is contexts[2] and contexts[0] is not contexts[1]
    assert store.certificate("a") is store.certificate("a")
    assert mint.hosts == ["a", "b"]


def test_sixteen_threads_that_ask_for_a_host_cause_one_leaf(authority: CertificateAuthority, mint: Mint) -> None:
    store = LeafCertificateCache(authority, LeafSettings(LEAF_DAYS))
    barrier, two_at_once = threading.Barrier(16), threading.Barrier(2)

    def linger(_: str) -> None:
        with pytest.raises(threading.BrokenBarrierError):
            two_at_once.wait(SOON)  # a second mint would meet the first here

    def ask(_: int) -> ssl.SSLContext:
        barrier.wait(TIMEOUT)
        return store.context("a")

    mint.before = linger
    with ThreadPoolExecutor(16) as pool:
        contexts = list(pool.map(ask, range(16)))
    assert mint.hosts == ["a"]
    assert {id(context) for context in contexts} == {id(store.context("a"))}


def test_minting_for_one_host_delays_no_other(authority: CertificateAuthority, mint: Mint) -> None:
    store = LeafCertificateCache(authority, LeafSettings(LEAF_DAYS))
    reached, go_on = threading.Event(), threading.Event()

    def hold_a(host: str) -> None:
        if host == "a":
            reached.set()
            assert go_on.wait(TIMEOUT)

    mint.before = hold_a
    slow = in_thread(store.context, "a")
    assert reached.wait(TIMEOUT)
    quick = in_thread(store.context, "b")
    try:
        assert isinstance(quick.result(TIMEOUT / 2), ssl.SSLContext)
        assert not slow.done()
    finally:
        go_on.set()
    assert slow.result(TIMEOUT) is store.context("a")


def test_a_failed_mint_is_raised_once_and_does_not_block_the_host(authority: CertificateAuthority, mint: Mint) -> None:
    store = LeafCertificateCache(authority, LeafSettings(LEAF_DAYS))

    def fail(_: str) -> None:
        raise ValueError("no")

    mint.before = fail
    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            in_thread(store.context, "a").result(TIMEOUT / 2)
    mint.before = lambda host: None
    assert in_thread(store.context, "a").result(TIMEOUT / 2) is store.context("a")


def test_the_least_recently_used_leaf_goes_first(authority: CertificateAuthority, mint: Mint) -> None:
    store = LeafCertificateCache(authority, LeafSettings(LEAF_DAYS), capacity=2)
    for host in ("a", "b", "a", "c", "a", "c", "b"):
        store.context(host)
    assert mint.hosts == ["a", "b", "c", "b"]


def test_the_number_of_cached_contexts_is_limited(authority: CertificateAuthority) -> None:
    store = LeafCertificateCache(authority, LeafSettings(LEAF_DAYS), capacity=3)
    contexts = [weakref.ref(store.context(f"{number}.test")) for number in range(10)]
    gc.collect()
    assert [number for number, context in enumerate(contexts) if context() is not None] == [7, 8, 9]


def test_a_leaf_is_issued_again_well_before_it_ends(authority: CertificateAuthority, mint: Mint) -> None:
    now = [time.time()]
    store = LeafCertificateCache(authority, LeafSettings(LEAF_DAYS), clock=lambda: now[0])
    first = store.context("a")
    end = moment(store.certificate("a"), "not_valid_after").timestamp()
    now[0] += (end - now[0]) / 2
    assert store.context("a") is first
    now[0] = end - 2 * 86400
    second = store.context("a")
    assert second is not first
    assert mint.hosts == ["a", "a"]


DAY = 86400.0


@pytest.mark.parametrize("ask", [LeafCertificateCache.context, LeafCertificateCache.get_cached])
@pytest.mark.parametrize(("ahead", "same"), [(30 * DAY, False), (1000 * DAY, False), (1.5 * DAY, False), (60, True)])
def test_a_leaf_minted_while_the_clock_was_ahead_is_minted_again(
    authority: CertificateAuthority,
    mint: Mint,
    ahead: float,
    same: bool,
    ask: Callable[[LeafCertificateCache, str], Optional[ssl.SSLContext]],
) -> None:
    """Some of what it is dated back has to be left, too: the clocks of clients may be late."""
    now = [time.time() + ahead]
    store = LeafCertificateCache(authority, LeafSettings(LEAF_DAYS), clock=lambda: now[0])
    first = store.context("a")
    now[0] = time.time()
    assert (ask(store, "a") is first) is same
    again = store.context("a")
    assert ask(store, "a") is again  # and it stays
    assert moment(store.certificate("a"), "not_valid_before") < datetime.now(timezone.utc) - timedelta(hours=20)
    assert mint.hosts == (["a"] if same else ["a", "a"])


def test_an_authority_that_is_not_valid_yet_is_logged(
    authority: CertificateAuthority, caplog: pytest.LogCaptureFixture
) -> None:
    begin = moment(authority.certificate, "not_valid_before")
    store = LeafCertificateCache(authority, LeafSettings(LEAF_DAYS), clock=lambda: begin.timestamp() - DAY)
    with caplog.at_level(logging.WARNING, "dduct.leaves"):
        store.context("a")
        store.context("b")
    (line,) = caplog.messages
    assert f"before {begin:%Y-%m-%d %H:%M}" in line and "clock" in line


def test_a_leaf_key_never_touches_the_disk(
    authority: CertificateAuthority, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a temporary file")

    monkeypatch.chdir(tmp_path)
    for name in ("mkstemp", "mkdtemp", "NamedTemporaryFile", "TemporaryFile"):
        monkeypatch.setattr(tempfile, name, forbidden)
    opened: List[str] = []
    real = ssl.SSLContext.load_cert_chain

    def load_cert_chain(context: ssl.SSLContext, certfile: Any, *rest: Any) -> None:
        opened.append(os.readlink(certfile))
        real(context, certfile, *rest)

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", load_cert_chain)
    LeafCertificateCache(authority, LeafSettings(LEAF_DAYS)).context("a")
    assert len(opened) == 1 and opened[0].startswith("/memfd:")
    assert os.listdir(tmp_path) == []


# --- handshakes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("host", HOSTS)
def test_a_strict_client_accepts_a_leaf(
    authority: CertificateAuthority, leaves: LeafCertificateCache, host: str
) -> None:
    assert shake_hands(leaves.context(host), trusting(authority.certificate), host) == ("TLSv1.3", None)


@pytest.mark.parametrize("host", HOSTS)
def test_a_client_refuses_a_leaf_for_another_host(
    authority: CertificateAuthority, leaves: LeafCertificateCache, host: str
) -> None:
    for other in {*HOSTS, "other.test", "192.0.2.2", "2001:db8::2"} - {host}:
        with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
            shake_hands(leaves.context(host), trusting(authority.certificate), other)


def test_a_client_of_another_authority_refuses_a_leaf(leaves: LeafCertificateCache) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(leaves.context("origin.test"), trusting(hand_made(own_key, "dduct")), "origin.test")


def test_http_1_1_is_chosen_and_http_2_is_not(authority: CertificateAuthority, leaves: LeafCertificateCache) -> None:
    client = trusting(authority.certificate)
    client.set_alpn_protocols(["h2", "http/1.1"])
    assert shake_hands(leaves.context("origin.test"), client, "origin.test") == ("TLSv1.3", "http/1.1")


def test_an_elliptic_authority_of_the_users_own_serves_a_handshake() -> None:
    own = CertificateAuthority(KeyPair(own_key, hand_made(own_key)))
    context = LeafCertificateCache(own, LeafSettings(LEAF_DAYS)).context("::1")
    assert shake_hands(context, trusting(own.certificate), "::1")[0] == "TLSv1.3"


def test_certificate_caches_with_one_secret_resume_each_others_sessions(
    authority: CertificateAuthority, leaves: LeafCertificateCache
) -> None:
    """As workers do, among which a client cannot choose."""
    client = trusting(authority.certificate)
    first, second = (LeafCertificateCache(authority, LeafSettings(LEAF_DAYS), ticket_secret=b"x") for _ in range(2))
    before = meet(first.context("a.test"), client, name="a.test")
    for store, host, resumed in ((second, "a.test", True), (second, "b.test", False), (leaves, "a.test", False)):
        assert meet(store.context(host), client, before.session, host).session_reused is resumed


@pytest.mark.parametrize("verifying", [False, True])
def test_the_root_that_clients_have_is_not_sent_to_them(authority: CertificateAuthority, verifying: bool) -> None:
    """Only where it has to be known here to verify clients: OpenSSL then puts it into the chain by itself."""
    context = LeafCertificateCache(authority, LeafSettings(LEAF_DAYS, verifying)).context("origin.test")
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    hello, rest = ssl.MemoryBIO(), ssl.MemoryBIO()
    trusting = ssl.create_default_context(cadata=authority.pem.decode())
    client = trusting.wrap_bio(rest, hello, server_hostname="origin.test")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    incoming.write(hello.read())
    server = context.wrap_bio(incoming, outgoing, server_side=True)
    with pytest.raises(ssl.SSLWantReadError):
        server.do_handshake()
    flight = outgoing.read()
    rest.write(flight)
    client.do_handshake()
    leaf = client.getpeercert(binary_form=True)
    assert leaf is not None
    root = ssl.PEM_cert_to_DER_cert(authority.pem.decode())
    assert (len(flight) > len(leaf) + len(root)) is verifying
