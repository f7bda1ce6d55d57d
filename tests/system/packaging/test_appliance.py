"""The OpenNebula appliance: every input good, bad and hostile, and what becomes of it."""

from __future__ import annotations

import base64
import dataclasses
import os
import re
import shutil
import stat
import subprocess
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID
from support.appliance import ADDRESSES, APPLIANCE, OPENNEBULA, ROOT, Appliance, encoded
from support.effort import LONG

import dduct
from proxy.access import Users
from server import config
from server.config_keys import Config
from server.config_values import Address
from tls.authority import CertificateAuthority

DEFAULTS = config.defaults(Path("/nowhere"))
SOURCE = (APPLIANCE / "appliance.sh").read_text("utf-8")
INPUTS: List[str] = re.findall(r"^    'ONEAPP_DDUCT_([A-Z0-9_]+)' ", SOURCE, re.MULTILINE)
MEGA = 1024 * 1024


@pytest.fixture
def appliance(tmp_path: Path) -> Appliance:
    return Appliance(tmp_path)


def patterns(configuration: Config) -> Tuple[str, ...]:
    return tuple(pattern.pattern for pattern in configuration.proxy.filters)


# --- the inputs ---------------------------------------------------------------------------------


def test_without_inputs_it_serves_the_network_of_its_first_nic(appliance: Appliance) -> None:
    found = appliance.configure()
    assert (found.proxy.tcp_bind, found.proxy.tls_bind) == (Address("0.0.0.0", 8000), Address("0.0.0.0", 4430))
    assert found.proxy.allow_clients == ("127.0.0.0/8", "::1/128", "10.0.2.0/24")
    assert patterns(found) == patterns(DEFAULTS)
    assert found.certs.server_dns_sans == DEFAULTS.certs.server_dns_sans
    assert found.certs.server_ip_sans == ("10.0.2.15",)
    assert found.misc.file_dir == appliance.state / "files" and found.misc.cert_dir == appliance.state / "certs"
    assert found.proxy.auth_file is None and found.proxy.upstream_ca is None and found.proxy.upstream_proxy is None
    size = os.statvfs(appliance.state)
    assert found.cache.max_size == pytest.approx(0.7 * size.f_blocks * size.f_frsize, rel=0.01)
    assert dataclasses.replace(found.cache, max_size=None, min_free=2**30) == DEFAULTS.cache


def test_written_files_are_readable_by_dduct_and_root_only(appliance: Appliance) -> None:
    appliance.configure(ACCESS_USER="ada", ACCESS_PASSWORD="x")
    for name in ("dduct.toml", "users"):
        assert stat.S_IMODE((appliance.etc / name).stat().st_mode) == 0o640
        assert any(line.startswith("chown root:dduct") and name in line for line in appliance.asked("chown"))
    assert stat.S_IMODE((appliance.state / "certs").stat().st_mode) == 0o700
    assert [path.name for path in appliance.etc.iterdir() if path.name.startswith(".")] == []


GOOD: List[Tuple[Dict[str, str], str, Any]] = [
    ({"LISTEN_PORT": "3128"}, "proxy.tcp_bind", Address("0.0.0.0", 3128)),
    ({"LISTEN_PORT": "0"}, "proxy.tcp_bind", None),
    ({"LISTEN_PORT": " 65535 "}, "proxy.tcp_bind", Address("0.0.0.0", 65535)),
    ({"LISTEN_TLS_PORT": "0"}, "proxy.tls_bind", None),
    ({"LISTEN_TLS_PORT": "8443"}, "proxy.tls_bind", Address("0.0.0.0", 8443)),
    ({"LISTEN_ADDRESS": "192.168.9.5"}, "proxy.tcp_bind", Address("192.168.9.5", 8000)),
    ({"LISTEN_ADDRESS": "::"}, "proxy.tls_bind", Address("::", 4430)),
    ({"KEEP_HOSTS": "ghcr.io, *.docker.io\nquay.io"}, "certs.server_dns_sans", ("ghcr.io", "*.docker.io", "quay.io")),
    ({"KEEP_HOSTS": "10.9.8.7 fd00::1"}, "certs.server_ip_sans", ("10.0.2.15", "10.9.8.7", "fd00::1")),
    ({"KEEP_HOSTS": "10.9.8.7"}, "certs.server_dns_sans", ()),
    ({"KEEP_HOSTS": "*.a.*.b.io"}, "certs.server_dns_sans", ("*.a.*.b.io",)),
    ({"CACHE_SIZE": "20M"}, "cache.max_size", 20 * MEGA),
    ({"CACHE_SIZE": "0.5g"}, "cache.max_size", 512 * MEGA),
    ({"CACHE_SIZE": "64 MiB"}, "cache.max_size", 64 * MEGA),
    ({"CACHE_MIN_FREE": "100M"}, "cache.min_free", 100 * MEGA),
    ({"CACHE_MIN_FREE": "0%"}, "cache.min_free", 0),
    ({"CACHE_FRESH_FOR": "90m"}, "cache.fresh_for", 5400.0),
    ({"ACCESS_CLIENTS": "10.0.0.0/8,fd00::/8 192.168.7.1"}, "proxy.allow_clients", None),
    ({"ACCESS_CLIENT_CERT": "Yes"}, "proxy.require_client_cert", True),
    ({"ACCESS_CLIENT_CERT": "false"}, "proxy.require_client_cert", False),
    ({"UPSTREAM_NO_PROXY": "*.lab 10.1.1.1"}, "proxy.no_upstream_proxy", ("*.lab", "10.1.1.1")),
    ({"CA_NAME": "Lab 7, \"the\" \\ 'one'"}, "certs.ca_cn", "Lab 7, \"the\" \\ 'one'"),
    ({"CA_CONSTRAINED": "YES"}, "certs.name_constraints", True),
    ({"LOG_LEVEL": "Debug"}, "misc.log_level", "debug"),
    ({"LISTEN_IDLE_TIMEOUT": "5m"}, "proxy.idle_timeout", 300.0),
    ({"LISTEN_MAX_CONNECTIONS": "20000"}, "proxy.max_connections", 20000),
    ({"CACHE_STALE_IF_ERROR": "NO"}, "cache.stale_if_error", False),
    ({"CACHE_STALE_IF_ERROR": "yes"}, "cache.stale_if_error", True),
    ({"CACHE_OBEY_NO_STORE": "no"}, "cache.obey_no_store", False),
    ({"CACHE_AUTH_GRACE": "0"}, "cache.auth_grace", 0.0),
    ({"CACHE_AUTH_GRACE": "10m"}, "cache.auth_grace", 600.0),
    ({"UPSTREAM_INSECURE": "old.lab,*.test 10.1.1.1"}, "proxy.upstream_insecure", ("old.lab", "*.test", "10.1.1.1")),
    ({"UPSTREAM_TIMEOUT": "2m"}, "proxy.upstream_timeout", 120.0),
]


@pytest.mark.parametrize(("inputs", "key", "value"), GOOD)
def test_an_input_becomes_its_key(appliance: Appliance, inputs: Dict[str, str], key: str, value: Any) -> None:
    section, _, name = key.partition(".")
    found = getattr(getattr(appliance.configure(**inputs), section), name)
    if name == "allow_clients":
        value = ("127.0.0.0/8", "::1/128", "10.0.0.0/8", "fd00::/8", "192.168.7.1/32")
    assert found == value


def test_a_share_of_the_disk_is_a_size(appliance: Appliance) -> None:
    found = appliance.configure(CACHE_SIZE="50%", CACHE_MIN_FREE="10%").cache
    assert found.max_size is not None and found.min_free is not None
    assert found.max_size == pytest.approx(5 * found.min_free, abs=100)


def test_filters_are_taken_unchanged(appliance: Appliance) -> None:
    mine = r"""\.iso$ ^/a"b\\c'd(?P<sha256>[0-9a-f]{64}),{1,2}$ [*?] $HOME|`id`"""
    assert patterns(appliance.configure(KEEP_FILTERS=mine)) == tuple(mine.split())
    more = appliance.configure(KEEP_EXTRA_FILTERS=r"\.iso$")
    assert patterns(more) == (*patterns(DEFAULTS), r"\.iso$")
    both = appliance.configure(KEEP_FILTERS="a", KEEP_EXTRA_FILTERS="b\nc")
    assert patterns(both) == ("a", "b", "c")


def test_a_parent_proxy_may_have_a_password(appliance: Appliance) -> None:
    parent = appliance.configure(UPSTREAM_PROXY='https://ada:pa"ss\\w%40rd@squid.lab:3128/').proxy.upstream_proxy
    assert parent is not None and parent.tls and (parent.host, parent.port) == ("squid.lab", 3128)
    assert parent.credentials == 'ada:pa"ss\\w@rd'


# --- the network --------------------------------------------------------------------------------

VIRTUAL = "2: eth0    inet 10.0.2.101/24 scope global secondary eth0"
SIX = "2: eth0    inet6 fd00::15/64 scope global dynamic"


def set_up_with(appliance: Appliance, before: str, **inputs: str) -> Config:
    """Configure after some lines of shell."""
    done = appliance.run(f"{before}\nservice_configure", **inputs)
    assert done.returncode == 0, done.stdout + done.stderr
    return config.load(appliance.toml, Path("/nowhere"))


def test_the_own_address_is_the_first_that_the_kernel_has(appliance: Appliance) -> None:
    appliance.answer("addresses", f"{SIX}\n{ADDRESSES}\n{VIRTUAL}")  # which sorts before 10.0.2.15
    found = appliance.configure()
    assert found.certs.server_ip_sans == ("10.0.2.15",)
    assert found.proxy.allow_clients == ("127.0.0.0/8", "::1/128", "10.0.2.0/24", "fd00::/64")


def test_the_own_address_is_the_one_that_opennebula_gave(appliance: Appliance) -> None:
    appliance.answer("addresses", f"{VIRTUAL}\n{ADDRESSES}")
    assert set_up_with(appliance, "ETH0_IP=10.0.2.15").certs.server_ip_sans == ("10.0.2.15",)
    assert set_up_with(appliance, "ETH0_IP=10.0.2.77").certs.server_ip_sans == ("10.0.2.101",)  # which is not there


@pytest.mark.parametrize(
    ("address", "method", "waits"),
    [
        ("::", "auto", True),
        ("::", "dhcp", True),
        ("::", "static", True),
        ("::", "", False),
        ("::", "disable", False),
        ("", "auto", False),
    ],
)
def test_an_address_that_a_router_announces_is_waited_for(
    appliance: Appliance, address: str, method: str, waits: bool
) -> None:
    later = f"sleep() {{ printf '%s\\n' '{SIX}' >> \"{appliance.root.parent}/answers/addresses\"; }}"
    timeout = f"export ETH0_IP6_METHOD='{method}' DDUCT_NETWORK_ATTEMPTS=6"
    found = set_up_with(appliance, f"{later}\n{timeout}", LISTEN_ADDRESS=address)
    assert ("fd00::/64" in found.proxy.allow_clients) == waits


def test_a_router_that_says_nothing_is_not_waited_for_for_ever(appliance: Appliance) -> None:
    count = f'sleep() {{ echo x >> "{appliance.root}/slept"; }}'
    timeout = "export ETH0_IP6_METHOD=auto DDUCT_NETWORK_ATTEMPTS=30"
    found = set_up_with(appliance, f"{count}\n{timeout}", LISTEN_ADDRESS="::")
    assert found.proxy.allow_clients == ("127.0.0.0/8", "::1/128", "10.0.2.0/24")
    assert len((appliance.root / "slept").read_text()) == 2 * 10


BAD = [
    ("LISTEN_ADDRESS", ["localhost", "10.0.0.1", "1.2.3", "0.0.0.0:80", "999.1.1.1", "fe80::1"]),
    ("LISTEN_PORT", ["80a", "-1", "65536", "99999999999", "08000", "22", "8000 8001", "4430.0", "$(id)"]),
    ("LISTEN_TLS_PORT", ["https", "8000", "1e3"]),
    ("KEEP_HOSTS", ["https://ghcr.io", "ghcr.io/path", "a b..c", "*", "*.*.io", "x" * 300, "a;b", "1.2.3.999", ":::"]),
    ("KEEP_FILTERS", ["(", "[a-", "(?P<crc>.)", "caf\u00e9", "a\x01b"]),
    ("KEEP_EXTRA_FILTERS", ["(", "\x7f"]),
    ("CACHE_SIZE", ["20000", "lots", "-5G", "101%", "50%%", "1M", "900000T", "99999T", "5 G B", "%", "1K%"]),
    ("CACHE_MIN_FREE", ["10000", "all", "100%", "9000T"]),
    ("CACHE_FRESH_FOR", ["1", "day", "31d", "1w"]),
    ("CACHE_DISK", ["vdb", "yes", "/dev/not-there", "/dev/../etc/passwd x", "/etc/passwd", "/dev/vda;id"]),
    ("ACCESS_CLIENTS", ["10.0.0.0/33", "10.0.0.1/8", "lab", "10.0.0.0-10.0.0.9", "1.2.3.4/", "/8"]),
    ("ACCESS_USER", ["a:b", "a b", "#a", "x" * 65, "a\nb", "\u00fc"]),
    ("ACCESS_CLIENT_CERT", ["maybe", "2", "YES; id"]),
    (
        "UPSTREAM_PROXY",
        ["squid.lab:3128", "socks5://x:1", "http://squid", "http://a b:1", "http://x:1/path", "http://x:0"],
    ),
    ("UPSTREAM_NO_PROXY", ["http://x", "*.a/b"]),
    ("UPSTREAM_CA", ["not base64!", encoded(b"no PEM"), encoded(b"-----BEGIN CERTIFICATE-----\nAAAA\n")]),
    ("CA_NAME", ["x" * 65, "a\nb", "caf\u00e9", "\x1b[31m"]),
    ("CA_CONSTRAINED", ["perhaps"]),
    ("LOG_LEVEL", ["loud", "info debug"]),
    ("LISTEN_IDLE_TIMEOUT", ["60", "0", "0s", "40d"]),
    ("LISTEN_MAX_CONNECTIONS", ["0", "-1", "many", "1e3", "1000001", "08"]),
    ("CACHE_STALE_IF_ERROR", ["perhaps"]),
    ("CACHE_OBEY_NO_STORE", ["2"]),
    ("CACHE_AUTH_GRACE", ["60", "-1s", "31d"]),
    ("UPSTREAM_INSECURE", ["https://x", "*"]),
    ("UPSTREAM_TIMEOUT", ["0s", "half an hour"]),
]


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD for value in values])
def test_a_bad_input_changes_nothing_and_is_named(appliance: Appliance, name: str, value: str) -> None:
    appliance.toml.write_text("what there was\n")
    line = appliance.refused(**{name: value})
    assert line.isprintable() and len(line) < 400


def test_every_input_has_been_refused_once() -> None:
    elsewhere = {"ACCESS_PASSWORD", "CA_CERT", "CA_KEY"}
    assert {name for name, _ in BAD} | elsewhere == set(INPUTS)


def test_contradicting_inputs_are_refused(appliance: Appliance) -> None:
    appliance.refused("LISTEN_PORT", LISTEN_PORT="0", LISTEN_TLS_PORT="0")
    appliance.refused("LISTEN_TLS_PORT", LISTEN_PORT="9000", LISTEN_TLS_PORT="9000")
    appliance.refused("ACCESS_CLIENT_CERT", ACCESS_CLIENT_CERT="YES", LISTEN_TLS_PORT="0")
    appliance.refused("ACCESS_USER", ACCESS_PASSWORD="secret")
    appliance.answer("addresses", ADDRESSES.splitlines()[0])
    appliance.refused("ACCESS_CLIENTS", ACCESS_CLIENTS="")
    assert appliance.configure(ACCESS_CLIENTS="10.0.0.0/8").certs.server_ip_sans == ("127.0.0.1",)


def test_secrets_are_not_logged(appliance: Appliance) -> None:
    for inputs in (
        {"UPSTREAM_PROXY": "ftp://ada:hunter2@squid:1"},
        {"UPSTREAM_PROXY": "http://ada:hunter2@squid:1:2"},
        {"ACCESS_USER": "ada", "ACCESS_PASSWORD": "hunter2\x01"},
        {"CA_KEY": "hunter2", "CA_CERT": ""},
    ):
        done = appliance.run("service_configure", **inputs)
        assert done.returncode == 1 and "hunter2" not in done.stdout + done.stderr + "".join(appliance.asked("onegate"))


HOSTILE = [
    '"\nallow_clients = ["0.0.0.0/0"]\nx = "',
    "'; touch MARK; \"; touch MARK; $(touch MARK) `touch MARK` a[$(touch MARK)] %s%n ${PATH} * ]]>",
    "a[$(touch MARK)]",
    "\\",
    '"',
    "-n",
    "\udcff\udcfe",
]


@pytest.mark.parametrize("name", INPUTS)
def test_a_hostile_input_is_refused_or_stays_in_its_place(appliance: Appliance, name: str) -> None:
    key, certificate = authority()
    rest = {"ACCESS_USER": "ada", "ACCESS_PASSWORD": "x", "CA_CERT": encoded(certificate), "CA_KEY": encoded(pem(key))}
    usual = appliance.configure(**rest)
    mine = {"KEEP_FILTERS", "KEEP_EXTRA_FILTERS", "CA_NAME", "ACCESS_USER", "ACCESS_PASSWORD", "UPSTREAM_PROXY"}
    first = INPUTS.index(name)
    for value in HOSTILE if LONG else (HOSTILE[(first + step) % len(HOSTILE)] for step in (0, 3)):
        done = appliance.run("service_configure", **{**rest, name: value})
        assert list(appliance.root.rglob("*MARK*")) == []
        assert "syntax error" not in done.stdout + done.stderr and "unbound" not in done.stdout + done.stderr
        if done.returncode:
            assert f" ONEAPP_DDUCT_{name}: " in done.stdout, done.stdout
            continue
        found = config.load(appliance.toml, Path("/nowhere"))
        assert found.proxy.allow_clients == usual.proxy.allow_clients
        if value.strip():
            assert name in mine, f"{name} takes {value!r}"
        assert (found.misc, found.cache, found.proxy.tcp_bind) == (usual.misc, usual.cache, usual.proxy.tcp_bind)


# --- users --------------------------------------------------------------------------------------


def lets_in(appliance: Appliance, user: str, password: str) -> bool:
    users = Users(appliance.etc / "users")
    credentials = base64.b64encode(f"{user}:{password}".encode())
    return users.check(b"Basic " + credentials) == user


@pytest.mark.parametrize("password", ["secret", " a \"b\" \\ $(id) 'c' ", "pass:wörd"])
def test_a_configured_password_authenticates_its_user(appliance: Appliance, password: str) -> None:
    found = appliance.configure(ACCESS_USER="ada", ACCESS_PASSWORD=password)
    assert found.proxy.auth_file == appliance.etc / "users"
    assert lets_in(appliance, "ada", password) and not lets_in(appliance, "ada", "other")
    everything = b"".join(path.read_bytes() for path in appliance.etc.iterdir())
    assert password.encode() not in everything


def test_a_generated_password_stays_until_another_is_given(appliance: Appliance) -> None:
    appliance.configure(ACCESS_USER="ada")
    place = appliance.etc / "generated-password"
    password = place.read_text().strip()
    assert re.fullmatch("[A-Za-z0-9]{20}", password) and stat.S_IMODE(place.stat().st_mode) == 0o600
    appliance.configure(ACCESS_USER="bob")
    assert place.read_text().strip() == password and lets_in(appliance, "bob", password)
    appliance.configure(ACCESS_USER="bob", ACCESS_PASSWORD="mine")
    assert not place.exists() and lets_in(appliance, "bob", "mine")
    assert appliance.configure().proxy.auth_file is None
    assert not (appliance.etc / "users").exists()


def test_a_bad_password_is_named(appliance: Appliance) -> None:
    appliance.refused("ACCESS_PASSWORD", ACCESS_USER="ada", ACCESS_PASSWORD="a\nb")
    appliance.refused("ACCESS_PASSWORD", ACCESS_USER="ada", ACCESS_PASSWORD="\udcff")


# --- authorities --------------------------------------------------------------------------------


def authority(days: int = 30, is_ca: bool = True) -> Tuple[ec.EllipticCurvePrivateKey, bytes]:
    """An authority of a user's own that begins so many days ago and lasts a day less, or ends in so many."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mine")])
    end = datetime.now(timezone.utc) + timedelta(days=days)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(end - timedelta(days=60))
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return key, certificate.public_bytes(Encoding.PEM)


def pem(key: ec.EllipticCurvePrivateKey, password: bytes = b"") -> bytes:
    how = BestAvailableEncryption(password) if password else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how)


def test_a_given_authority_is_used(appliance: Appliance) -> None:
    key, certificate = authority()
    certs = appliance.state / "certs"
    certs.mkdir()
    for name in ("ca.key", "ca.crt", "server.key", "server.crt", "server.p12", "client.crt"):
        (certs / name).write_text("old")
    inputs = {"CA_CERT": encoded(certificate), "CA_KEY": "\n".join(re.findall(".{1,64}", encoded(pem(key))))}
    appliance.configure(**inputs)
    assert (certs / "ca.crt").read_bytes() == certificate and (certs / "ca.key").read_bytes() == pem(key)
    assert stat.S_IMODE((certs / "ca.key").stat().st_mode) == 0o600
    assert sorted(path.name for path in certs.iterdir()) == ["ca.crt", "ca.key"]
    (certs / "client.crt").write_text("of this authority")
    appliance.configure(**inputs)
    appliance.configure()  # clients that trust it still do
    assert (certs / "client.crt").exists() and (certs / "ca.crt").read_bytes() == certificate


def test_unusable_authorities_are_refused(appliance: Appliance) -> None:
    key, certificate = authority()
    other, _ = authority()
    good = {"CA_CERT": encoded(certificate), "CA_KEY": encoded(pem(key))}
    appliance.refused("CA_KEY", CA_CERT=good["CA_CERT"])
    appliance.refused("CA_CERT", CA_KEY=good["CA_KEY"])
    assert "not the key of" in appliance.refused("CA_KEY", **{**good, "CA_KEY": encoded(pem(other))})
    assert "password" in appliance.refused("CA_KEY", **{**good, "CA_KEY": encoded(pem(key, b"secret"))})
    appliance.refused("CA_KEY", **{**good, "CA_KEY": good["CA_CERT"]})
    appliance.refused("CA_KEY", **{**good, "CA_KEY": "%%%"})
    appliance.refused("CA_CERT", **{**good, "CA_CERT": certificate.decode()})
    appliance.refused("CA_CERT", **{**good, "CA_CERT": encoded(b"hello")})
    key, certificate = authority(is_ca=False)
    line = appliance.refused("CA_CERT", CA_CERT=encoded(certificate), CA_KEY=encoded(pem(key)))
    assert "no certificate authority" in line
    key, certificate = authority(days=-1)
    assert "expired" in appliance.refused("CA_CERT", CA_CERT=encoded(certificate), CA_KEY=encoded(pem(key)))


def made_by_openssl(directory: Path, *algorithm: str, usage: str = "keyCertSign") -> Dict[str, str]:
    """An authority with a key that cryptography would not make."""
    key, certificate, config = (directory / f"own.{ending}" for ending in ("key", "crt", "cnf"))
    subprocess.run(["openssl", "genpkey", *algorithm, "-out", key], check=True, capture_output=True)
    config.write_text(
        "[req]\ndistinguished_name=name\nx509_extensions=authority\n[name]\n"
        f"[authority]\nbasicConstraints=critical,CA:TRUE\nkeyUsage={usage}\n"
    )
    command: List[Any] = ["openssl", "req", "-x509", "-new", "-config", config, "-key", key, "-out", certificate]
    subprocess.run([*command, "-subj", "/CN=mine", "-days", "30"], check=True, capture_output=True)
    return {"CA_CERT": encoded(certificate.read_bytes()), "CA_KEY": encoded(key.read_bytes())}


RSA = ("-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048")


def test_an_unusable_authority_leaves_the_old_one(appliance: Appliance, tmp_path: Path) -> None:
    key, certificate = authority()
    appliance.configure(CA_CERT=encoded(certificate), CA_KEY=encoded(pem(key)))
    young_key, young = authority(days=90)
    line = appliance.refused("CA_CERT", CA_CERT=encoded(young), CA_KEY=encoded(pem(young_key)))
    assert "not valid before" in line
    line = appliance.refused("CA_KEY", **made_by_openssl(tmp_path, "-algorithm", "ED25519"))
    assert "neither an RSA nor an EC key" in line
    line = appliance.refused("CA_KEY", **made_by_openssl(tmp_path, "-algorithm", "RSA-PSS"))
    assert "PSS alone" in line or "no whole PEM private key" in line  # which old versions of cryptography say
    line = appliance.refused("CA_CERT", **made_by_openssl(tmp_path, *RSA, usage="cRLSign"))
    assert "keyCertSign" in line
    certs = appliance.state / "certs"
    assert (certs / "ca.crt").read_bytes() == certificate and (certs / "ca.key").read_bytes() == pem(key)
    usual = made_by_openssl(tmp_path, *RSA)
    appliance.configure(**usual)
    assert encoded((certs / "ca.key").read_bytes()) == usual["CA_KEY"]
    assert sorted(path.name for path in certs.iterdir()) == ["ca.crt", "ca.key"]  # what was tried is gone


def test_the_server_certificate_follows_the_address(appliance: Appliance, certificates: Path) -> None:
    certs = appliance.state / "certs"
    shutil.copytree(certificates, certs)
    appliance.configure()  # made for other addresses than this VM's
    assert not (certs / "server.crt").exists() and not (certs / "server.p12").exists() and (certs / "ca.crt").exists()


def test_authorities_to_trust_upstream_are_written(
    appliance: Appliance, origin_authority: CertificateAuthority
) -> None:
    found = appliance.configure(UPSTREAM_CA=encoded(origin_authority.pem))
    assert found.proxy.upstream_ca is not None and found.proxy.upstream_ca.read_bytes() == origin_authority.pem
    assert appliance.configure().proxy.upstream_ca is None
    assert not (appliance.etc / "upstream-ca.pem").exists()


# --- again and again ----------------------------------------------------------------------------


def test_configuring_twice_is_configuring_once(appliance: Appliance) -> None:
    appliance.configure(KEEP_HOSTS="ghcr.io", LISTEN_PORT="80")
    first = appliance.toml.read_text()
    appliance.configure(KEEP_HOSTS="ghcr.io", LISTEN_PORT="80")
    assert appliance.toml.read_text() == first
    changed = appliance.configure(KEEP_HOSTS="quay.io")
    assert changed.certs.server_dns_sans == ("quay.io",) and changed.proxy.tcp_bind == Address("0.0.0.0", 8000)


def test_ports_below_1024_need_a_capability(appliance: Appliance) -> None:
    place = appliance.root / "etc" / "systemd" / "system" / "dduct.service.d" / "ports.conf"
    appliance.configure(LISTEN_PORT="80")
    assert "AmbientCapabilities=CAP_NET_BIND_SERVICE" in place.read_text()
    appliance.configure()
    assert not place.exists()
    appliance.configure(LISTEN_TLS_PORT="443")
    assert place.exists()


# --- disks --------------------------------------------------------------------------------------


@pytest.fixture
def disk(appliance: Appliance, tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.touch()
    os.truncate(path, 64 * MEGA)
    appliance.answer("disks", f"{path} disk 0")
    return path


def kind(path: Path) -> str:
    command = ["/usr/sbin/blkid", "-p", "-o", "value", "-s", "TYPE", str(path)]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def test_a_blank_disk_is_formatted_and_mounted(appliance: Appliance, disk: Path) -> None:
    found = appliance.configure()
    assert kind(disk) == "ext4"
    assert appliance.asked("mount") == [f"mount -t ext4 -o nosuid,nodev,noexec {disk} {appliance.state}"]
    assert found.cache.max_size == pytest.approx(0.9 * 64 * MEGA, rel=0.01)
    assert found.cache.min_free == pytest.approx(64 * MEGA / 20, rel=0.01)
    before = disk.read_bytes()
    appliance.configure()
    assert disk.read_bytes() == before and len(appliance.asked("mount")) == 1


def test_a_disk_with_ext4_is_used_as_it_is(appliance: Appliance, disk: Path) -> None:
    subprocess.run(["/usr/sbin/mke2fs", "-q", "-F", "-t", "ext4", str(disk)], check=True, capture_output=True)
    before = disk.read_bytes()
    appliance.configure()
    assert disk.read_bytes() == before and len(appliance.asked("mount")) == 1
    assert appliance.asked("resize2fs") == [f"resize2fs {disk}"]


def test_on_a_disk_with_other_files_dduct_owns_two_directories(appliance: Appliance, disk: Path) -> None:
    others = appliance.state / "home" / "ada"
    others.mkdir(parents=True)
    (appliance.state / "files").mkdir()
    appliance.state.chmod(0o700)
    appliance.answer("id", "echo 4711")
    appliance.configure()
    mine = [f"chown -R dduct:dduct {appliance.state / name}" for name in ("certs", "files")]
    assert [line for line in appliance.asked("chown") if "dduct:dduct" in line] == mine
    assert stat.S_IMODE(appliance.state.stat().st_mode) == 0o701  # and the way to them
    assert stat.S_IMODE((appliance.state / "files").stat().st_mode) == 0o700
    appliance.answer("id", f"echo {os.getuid()}")
    appliance.configure()  # the user's number is right by now, and nothing is looked through
    assert len([line for line in appliance.asked("chown") if "dduct:dduct" in line]) == 2


def test_a_disk_with_a_link_in_place_of_a_directory_is_refused(
    appliance: Appliance, disk: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o755)
    (appliance.state / "certs").symlink_to(outside)
    mode = outside.stat().st_mode
    appliance.refused("CACHE_DISK", CACHE_DISK="auto")
    assert outside.stat().st_mode == mode


@pytest.mark.skipif(not Path("/usr/sbin/mkfs.xfs").exists(), reason="xfsprogs is not installed")
def test_a_disk_with_xfs_is_used_as_it_is(appliance: Appliance, disk: Path) -> None:
    os.truncate(disk, 320 * MEGA)  # the least that mkfs.xfs takes
    subprocess.run(["/usr/sbin/mkfs.xfs", "-q", str(disk)], check=True, capture_output=True)
    appliance.configure()
    assert kind(disk) == "xfs" and appliance.asked("resize2fs") == []
    assert appliance.asked("mount") == [f"mount -t xfs -o nosuid,nodev,noexec {disk} {appliance.state}"]


def test_a_disk_with_anything_else_is_left_alone(appliance: Appliance, disk: Path) -> None:
    table = bytearray(512)  # one partition, from sector 2048 on
    table[446:462] = bytes.fromhex("00000000830000000008000000080000")
    table[510:512] = b"\x55\xaa"
    contents = {"partitions": bytes(table), "LUKS": b"LUKS\xba\xbe\x00\x01" + bytes(200), "ext2": None}
    for what, begin in contents.items():
        os.truncate(disk, 0)
        os.truncate(disk, 64 * MEGA)
        if begin is None:
            subprocess.run(["/usr/sbin/mke2fs", "-q", "-F", "-t", "ext2", str(disk)], check=True, capture_output=True)
        else:
            with disk.open("r+b") as file:
                file.write(begin)
        before = disk.read_bytes()
        line = appliance.refused("CACHE_DISK", CACHE_DISK="auto")
        assert disk.read_bytes() == before and "left alone" in line, what
    assert appliance.asked("mount") == []


def test_a_swap_disk_is_not_used(appliance: Appliance, disk: Path) -> None:
    subprocess.run(["/usr/sbin/mkswap", str(disk)], check=True, capture_output=True)
    appliance.configure()
    assert appliance.asked("mount") == []


def test_one_of_several_disks_has_to_be_named(appliance: Appliance, disk: Path) -> None:
    appliance.answer("disks", f"{disk} disk 0\n/dev/vdc disk 0")
    assert "/dev/vdc" in appliance.refused("CACHE_DISK", CACHE_DISK="")
    appliance.configure(CACHE_DISK="none")
    assert appliance.asked("mount") == []


def test_a_disk_that_is_used_elsewhere_is_left_alone(appliance: Appliance, disk: Path) -> None:
    appliance.answer("targets", "/srv")
    assert "/srv" in appliance.refused("CACHE_DISK", CACHE_DISK="auto")


def test_nothing_is_formatted_before_all_inputs_are_judged(appliance: Appliance, disk: Path) -> None:
    for inputs in ({"KEEP_FILTERS": "("}, {"LOG_LEVEL": "x"}, {"CACHE_SIZE": "1G"}, {"CA_CERT": "x", "CA_KEY": "x"}):
        appliance.refused(**inputs)
        assert kind(disk) == ""


def test_a_cache_disk_set_to_none_is_unmounted(appliance: Appliance, disk: Path) -> None:
    appliance.configure()
    appliance.configure(CACHE_DISK="none")
    assert appliance.asked("umount") == [f"umount {appliance.state}"]


def test_a_file_system_that_cannot_be_mounted_is_an_error(appliance: Appliance, disk: Path) -> None:
    appliance.answer("mount", "exit 32")
    assert "cannot be mounted" in appliance.refused("CACHE_DISK", CACHE_DISK="auto")


# --- what is told -------------------------------------------------------------------------------


@pytest.fixture
def served(appliance: Appliance, certificates: Path) -> Appliance:
    """One whose dduct has made its certificates."""
    shutil.copytree(certificates, appliance.state / "certs")
    return appliance


def test_bootstrap_reports_and_publishes(served: Appliance) -> None:
    inputs = {"ACCESS_USER": "ada", "KEEP_HOSTS": "ghcr.io,10.9.8.7"}
    served.configure(**inputs)
    done = served.run("service_bootstrap", **inputs)
    assert done.returncode == 0, done.stdout + done.stderr
    assert stat.S_IMODE(served.report.stat().st_mode) == 0o600
    report = dict(line.split(" = ", 1) for line in served.report.read_text().splitlines() if " = " in line)
    assert report["proxy"] == "http://10.0.2.15:8000" and report["proxy_tls"] == "https://10.0.2.15:4430"
    assert report["password"] == (served.etc / "generated-password").read_text().strip()
    assert report["url"] == "http://10.0.2.15:8000/ca.crt" and report["hosts"] == "ghcr.io 10.9.8.7"
    certificate = x509.load_pem_x509_certificate((served.state / "certs" / "ca.crt").read_bytes())
    assert bytes.fromhex(report["sha256"].replace(":", "")) == certificate.fingerprint(hashes.SHA256())
    assert "systemctl restart dduct.service" in served.asked("systemctl")
    assert served.asked("curl")[0].endswith("http://127.0.0.1:8000/healthz")
    told = dict(re.findall(r'--data (\w+)="(.*)"', "\n".join(served.asked("onegate"))))
    assert told["DDUCT_PROXY_URL"] == report["proxy"] and told["DDUCT_PROXY_TLS_URL"] == report["proxy_tls"]
    assert "=" not in told["DDUCT_CA_CERT"]
    published = x509.load_pem_x509_certificate(base64.b64decode(told["DDUCT_CA_CERT"], validate=True))
    assert published.fingerprint(hashes.SHA256()) == certificate.fingerprint(hashes.SHA256())
    assert served.asked("onegate")[-1] == "onegate vm update --erase ERROR"


@pytest.mark.parametrize("left", [False, True], ids=["new", "left over"])
def test_the_report_is_private_while_it_is_written(served: Appliance, tmp_path: Path, left: bool) -> None:
    served.umask = "0022"
    served.configure(ACCESS_USER="ada")
    new = served.report.with_name(served.report.name + ".new")
    if left:
        new.touch(mode=0o644)
    seen = tmp_path / "seen"
    served.program("openssl", f'#!/bin/sh\nstat -c %a "{new}" >> "{seen}"\nexec {shutil.which("openssl")} "$@"\n')
    done = served.run("service_bootstrap", ACCESS_USER="ada")
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(seen.read_text().split()) == {"600"}
    assert stat.S_IMODE(served.report.stat().st_mode) == 0o600 and not new.exists()


def test_files_with_secrets_are_never_world_readable(served: Appliance) -> None:
    served.umask = "0022"
    inputs = {"ACCESS_USER": "ada", "UPSTREAM_PROXY": "http://me:hush@192.0.2.1:3128"}
    served.configure(**inputs)
    for name in ("users", "dduct.toml", "generated-password"):
        assert stat.S_IMODE((served.etc / name).stat().st_mode) & 0o007 == 0, name
    assert stat.S_IMODE((served.etc / "generated-password").stat().st_mode) == 0o600


def test_a_given_password_is_not_reported(served: Appliance) -> None:
    inputs = {"ACCESS_USER": "ada", "ACCESS_PASSWORD": "hunter2"}
    served.configure(**inputs)
    done = served.run("service_bootstrap", **inputs)
    assert done.returncode == 0 and "hunter2" not in served.report.read_text() + done.stdout
    assert "password = as given" in served.report.read_text()


def test_a_dduct_with_only_a_tls_port_is_checked_there(served: Appliance) -> None:
    served.configure(LISTEN_PORT="0")
    assert served.run("service_bootstrap", LISTEN_PORT="0").returncode == 0
    asked = served.asked("curl")[0]
    assert asked.endswith("--connect-to ::127.0.0.1: -H Host: localhost https://10.0.2.15:4430/healthz")
    assert "proxy = " not in served.report.read_text()


def test_a_dduct_that_does_not_start_is_an_error(served: Appliance) -> None:
    served.configure()
    served.answer("systemctl", '[ "$1" != restart ] || exit 1')
    served.answer("journalctl", "printf 'x\\ndduct: cannot listen, \"really\"\\n'")
    done = served.run("service_bootstrap")
    assert done.returncode == 1 and not served.report.exists()
    assert 'cannot listen, "really"' in done.stdout
    assert "ERROR=\"dduct: dduct does not start: 'cannot listen; 'really''; see" in served.asked("onegate")[0]
    assert served.asked("systemctl")[-1] == "systemctl stop dduct.service"


def test_a_dduct_that_does_not_answer_is_an_error(served: Appliance) -> None:
    served.configure()
    served.answer("curl", "exit 7")
    done = served.run("service_bootstrap")
    assert done.returncode == 1 and "does not answer" in done.stdout and not served.report.exists()


def test_an_unreachable_onegate_is_asked_once(served: Appliance) -> None:
    served.configure()
    served.answer("onegate", "exit 1")
    done = served.run("service_bootstrap")
    assert done.returncode == 0 and len(served.asked("onegate")) == 1 and served.report.exists()


def test_help_names_every_input(appliance: Appliance) -> None:
    done = appliance.run("service_help")
    assert all(f"ONEAPP_DDUCT_{name} " in done.stdout for name in INPUTS)


# --- the files beside it ------------------------------------------------------------------------


def test_the_appliance_has_the_version_of_dduct() -> None:
    assert f"ONE_SERVICE_VERSION='{dduct.VERSION}'" in SOURCE
    assert f"## {dduct.VERSION}" in (APPLIANCE / "CHANGELOG.md").read_text("utf-8")


SHELL = [
    APPLIANCE / "appliance.sh",
    OPENNEBULA / "build-image.sh",
    *(
        OPENNEBULA / "image" / name
        for name in ("service", "common.sh", "onegate", "small-context", "before-packages", "customize")
    ),
    *sorted((OPENNEBULA / "apps-code").rglob("*.sh")),
    *sorted((OPENNEBULA / "apps-code").rglob("gen_context")),
]


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing() -> None:
    command = ["shellcheck", "-x", *(str(path.relative_to(ROOT)) for path in SHELL)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == ""


def described() -> Any:
    return yaml.safe_load(next(APPLIANCE.glob("*-*-*-*-*.yaml")).read_text("utf-8"))


def test_the_marketplace_knows_every_input() -> None:
    names = [f"ONEAPP_DDUCT_{name}" for name in INPUTS]
    assert len(names) == len(set(names)) > 20
    template = described()["opennebula_template"]
    assert template["inputs_order"].split(",") == names
    assert [name.upper() for name in template["user_inputs"]] == names
    assert [name.upper() for name in template["context"] if name.startswith("oneapp_")] == names
    assert all(value == f"${key.upper()}" for key, value in template["context"].items() if key.startswith("oneapp_"))
    metadata = yaml.safe_load((APPLIANCE / "metadata.yaml").read_text("utf-8"))
    assert [name.lstrip(":") for name in metadata[":app"][":context"][":params"]] == names
    readme = (OPENNEBULA / "README.md").read_text("utf-8")
    assert re.findall(r"^\| `(ONEAPP_DDUCT_\w+)` \|", readme, re.MULTILINE) == names
    groups = {entry["name"] for entry in template["user_inputs_metadata"] if entry["type"] == "GROUP"}
    assert groups == {name.split("_")[2] for name in names}


def test_the_wizard_has_the_types_and_defaults_of_the_appliance(appliance: Appliance) -> None:
    types = dict(re.findall(r"^    'ONEAPP_DDUCT_(\w+)' .*'O\|(\w+)'$", SOURCE, re.MULTILINE))
    given = {}
    for name, text in described()["opennebula_template"]["user_inputs"].items():
        mandatory, kind, _, options, default = text.split("|")
        assert (mandatory, kind, options) == ("O", types[name.upper()[len("ONEAPP_DDUCT_") :]], "")
        given[name.upper()[len("ONEAPP_DDUCT_") :]] = default
    empty = appliance.configure()
    found = appliance.configure(**given)
    hosts = found.certs.server_dns_sans
    assert set(hosts) == set(empty.certs.server_dns_sans) - {"*.dduct.rs"}
    assert (
        dataclasses.replace(found, certs=dataclasses.replace(found.certs, server_dns_sans=empty.certs.server_dns_sans))
        == empty
    )


def test_the_marketplaces_own_tests_are_accepted(appliance: Appliance) -> None:
    params = yaml.safe_load((APPLIANCE / "metadata.yaml").read_text("utf-8"))[":app"][":context"][":params"]
    found = appliance.configure(**{name[len(":ONEAPP_DDUCT_") :]: value for name, value in params.items()})
    assert found.proxy.tcp_bind == Address("0.0.0.0", 3128) and found.cache.max_size == 2 * 2**30
    assert yaml.safe_load((APPLIANCE / "tests.yaml").read_text("utf-8")) == ["00-dduct_basic.rb"]
    assert described()["version"].startswith(f"{dduct.VERSION}-")
    assert (OPENNEBULA / described()["logo"]).read_bytes().startswith(b"\x89PNG")


def test_packer_uploads_what_is_there() -> None:
    packer = OPENNEBULA / "apps-code" / "community-apps" / "packer" / "dduct"
    text = (packer / "dduct.pkr.hcl").read_text("utf-8")
    assert set(re.findall(r"appliances/dduct/([\w.]+)", text)) == {"appliance.sh", "dduct.service"}
    local = set(re.findall(r"\$\{var\.input_dir\}/([\w.-]+)", text)) - {"context", "dduct.pyz"}
    assert {name for name in local if not (packer / name).exists()} == set()
    variables = set(re.findall(r'variable "(\w+)"', (packer / "variables.pkr.hcl").read_text("utf-8")))
    assert set(re.findall(r"var\.(\w+)", text)) <= variables
    context = subprocess.run(["sh", str(packer / "gen_context")], capture_output=True, text=True, check=True).stdout
    assert re.search(r"ETH0_MAC='([0-9:]+)'", context)[1] in text  # type: ignore[index]
