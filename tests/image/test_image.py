"""The appliance's image, booted three times: with an input each way, with changed ones, and with a bad one.

`make test-image`; needs qemu, but neither KVM nor OpenNebula: OneGate is a small server here.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import ssl
import time
from pathlib import Path
from typing import Dict

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from support.client import Answer, Client
from support.documented import check_size
from support.origin import Asked, Connection, Files, Origin

from image.guest import HOST, IMAGE, MAC, Guest, need
from tls.authority import CertificateAuthority
from tls.leaf_certificates import LeafCertificateCache, LeafSettings

BODY = os.urandom(3_000_000)
OBJECT = "/pool/some.deb"
TOKEN = "s3cret/token=="


class Gate:
    """OneGate, as far as a VM talks to it: what it would show of the VM."""

    def __init__(self) -> None:
        self.attributes: Dict[str, str] = {}

    def __call__(self, asked: Asked, connection: Connection) -> None:
        if (asked.get("x-onegate-token"), asked.get("x-onegate-vmid"), asked.method) != (TOKEN, "42", "PUT"):
            connection.respond(401)
            return
        text = asked.body.decode()
        if asked.target == "/vm?type=2":
            self.attributes.pop(text, None)
        else:
            # What OpenNebula's own parser takes: a name, and a word or something in double quotes.
            match = re.fullmatch(r'([A-Z0-9_]+)=(?:"([^"\\]*)"|([^=#\s,\[\]]+))', text)
            assert match is not None, text
            self.attributes[match[1]] = match[2] if match[2] is not None else match[3]
        connection.respond(200)


class Estate:
    """What a guest finds around it: an origin that it verifies, and OneGate."""

    def __init__(self, guest: Guest, origin: Origin, gate: Gate, gate_port: int, ca: bytes) -> None:
        self.guest = guest
        self.origin = origin
        self.gate = gate
        self._context = {
            "ETH0_MAC": MAC,
            "ETH0_IP": "10.0.2.15",
            "ETH0_MASK": "255.255.255.0",
            "ETH0_GATEWAY": HOST,
            "ETH0_DNS": "10.0.2.3",
            "NETWORK": "YES",
            "TOKEN": "YES",
            "VMID": "42",
            "REPORT_READY": "YES",
            "ONEGATE_ENDPOINT": f"http://{HOST}:{gate_port}",
            "SET_HOSTNAME": "cache-7",
            "SSH_PUBLIC_KEY": guest.public_key,
            "START_SCRIPT": "#!/bin/sh\necho 'it''s \"me\"' > /run/started\n",
            "ONEAPP_DDUCT_KEEP_HOSTS": f"ghcr.io {HOST}",
            "ONEAPP_DDUCT_UPSTREAM_CA": base64.b64encode(ca).decode(),
        }

    def boot(self, port: int, **inputs: str) -> float:
        """Boot with these inputs, until the appliance is ready; the seconds until dduct answered."""
        self.gate.attributes.pop("READY", None)
        self.start(**inputs)
        seconds = self.guest.wait_for("dduct", port)
        begin = time.monotonic()
        while self.gate.attributes.get("READY") != "YES":
            self.guest.still_running(begin, "READY")
            time.sleep(0.2)
        return seconds

    def start(self, **inputs: str) -> None:
        named = {f"ONEAPP_DDUCT_{name}": value for name, value in inputs.items()}
        self.guest.start({**self._context, **named}, TOKEN)

    def fetch(self, port: int, *fields: str) -> Answer:
        """Download the object through the guest, over TLS with a certificate of its published authority."""
        pem = base64.b64decode(self.gate.attributes["DDUCT_CA_CERT"], validate=True).decode()
        trust = ssl.create_default_context(cadata=pem)
        authority = f"{HOST}:{self.origin.port}"
        with Client(self.guest.ports[port]) as client:
            lines = [f"CONNECT {authority} HTTP/1.1", f"Host: {authority}", *fields]
            client.send(("\r\n".join(lines) + "\r\n\r\n").encode())
            answer = client.read(method="CONNECT")
            if answer.status != 200:
                return answer
            client.start_tls(trust, HOST)
            return client.get(OBJECT, authority)


def report_of(guest: Guest) -> Dict[str, str]:
    assert guest.shell("stat -c '%a %U' /etc/one-appliance/config").strip() == "600 root"
    lines = guest.shell("cat /etc/one-appliance/config").splitlines()
    return dict(line.split(" = ", 1) for line in lines if " = " in line)


def test_the_image_has_its_documented_size() -> None:
    assert IMAGE.exists(), f"{IMAGE} is not there: make image"
    check_size("dduct-X.Y.Z.qcow2", IMAGE)


def test_the_image_boots_with_correct_changed_and_wrong_inputs(
    tmp_path: Path, origin_authority: CertificateAuthority
) -> None:
    need("qemu-system-x86_64", "qemu-img", "ssh", "ssh-keygen")
    assert IMAGE.exists(), f"{IMAGE} is not there: make image"
    gate = Gate()
    tls = LeafCertificateCache(origin_authority, LeafSettings(30)).context(HOST)
    with (
        Origin(Files({OBJECT: BODY}, [("Cache-Control", "max-age=86400")]), tls) as origin,
        Origin(gate) as onegate,
        Guest(tmp_path) as guest,
    ):
        estate = Estate(guest, origin, gate, onegate.port, origin_authority.pem)
        first_boot(estate)
        guest.stop()
        changed_boot(estate)
        guest.stop()
        bad_boot(estate)
        guest.stop()


def first_boot(estate: Estate) -> None:
    """A blank second disk, and no inputs but what this machine needs."""
    guest, gate = estate.guest, estate.gate
    print(f"first boot: {estate.boot(8000):.0f} s to /healthz")
    assert gate.attributes["DDUCT_PROXY_URL"] == "http://10.0.2.15:8000"
    assert gate.attributes["DDUCT_PROXY_TLS_URL"] == "https://10.0.2.15:4430"
    assert "ERROR" not in gate.attributes
    certificate = x509.load_pem_x509_certificate(base64.b64decode(gate.attributes["DDUCT_CA_CERT"]))
    authority = guest.read(8000, "/ca.crt") or b""
    assert authority.strip() in (guest.read(8000, "/setup/sh") or b"")
    served = x509.load_pem_x509_certificate(authority)
    assert served.fingerprint(hashes.SHA256()) == certificate.fingerprint(hashes.SHA256())

    for number in range(2):
        answer = estate.fetch(8000)
        assert (answer.status, answer.complete) == (200, True)
        assert hashlib.sha256(answer.body).digest() == hashlib.sha256(BODY).digest()
        assert ("hit" in (answer.get("cache-status") or "")) == (number == 1), answer.headers
    assert estate.origin.count(OBJECT) == 1

    guest.wait_for_shell()
    report = report_of(guest)
    assert report["proxy"] == "http://10.0.2.15:8000" and report["clients"] == "10.0.2.0/24"
    assert report["hosts"] == f"ghcr.io {HOST}"
    assert bytes.fromhex(report["sha256"].replace(":", "")) == certificate.fingerprint(hashes.SHA256())
    assert report["cache"].startswith("/var/lib/dduct/files on /dev/vdb, ")
    assert "All set and ready to serve" in guest.shell("cat /etc/motd")
    assert guest.shell("cat /run/started").strip() == 'its "me"'
    assert guest.shell("hostname").strip() == "cache-7"
    mounted = guest.shell("findmnt -no SOURCE,FSTYPE,OPTIONS /var/lib/dduct").split()
    assert mounted[:2] == ["/dev/vdb", "ext4"] and {"nosuid", "nodev", "noexec"} <= set(mounted[2].split(","))
    assert guest.shell("stat -c '%s %U' $(find /var/lib/dduct/files -name some.deb)").strip() == f"{len(BODY)} dduct"
    process = guest.shell('ps -o user=,args= -p "$(systemctl show -p MainPID --value dduct)"')
    assert process.split()[0] == "dduct" and process.split()[-1] == "/etc/dduct/dduct.toml"
    assert guest.shell("stat -c '%a %U %G' /etc/dduct/dduct.toml").strip() == "640 root dduct"
    assert guest.shell("systemctl is-system-running; systemctl --failed --no-legend --plain").strip() == "running"
    assert guest.shell("ls -d /sys/module/tls").strip() == "/sys/module/tls"
    assert "passwordauthentication no" in guest.shell("sshd -T")
    assert int(guest.shell("df -B1 --output=size / | tail -1")) > 8.5 * 2**30
    assert guest.shell("grep -rhoE '[a-z]+://[^/ ]+' /etc/apt | sort -u").strip() == "http://deb.debian.org"


def changed_boot(estate: Estate) -> None:
    """Other ports, one of them below 1024, and a password; the cache and the authority are still there."""
    guest, gate = estate.guest, estate.gate
    before = gate.attributes["DDUCT_CA_CERT"]
    seconds = estate.boot(
        3128, LISTEN_PORT="3128", LISTEN_TLS_PORT="443", ACCESS_USER="ada", KEEP_HOSTS=f"quay.io,{HOST}"
    )
    print(f"second boot: {seconds:.0f} s to /healthz")
    assert gate.attributes["DDUCT_PROXY_URL"] == "http://10.0.2.15:3128"
    assert gate.attributes["DDUCT_CA_CERT"] == before
    assert guest.read(8000, "/healthz") is None
    with Client(guest.ports[443]) as client:
        pem = base64.b64decode(gate.attributes["DDUCT_CA_CERT"]).decode()
        client.start_tls(ssl.create_default_context(cadata=pem), "10.0.2.15")
        assert client.get("/healthz", "10.0.2.15").body == b"ok\n"

    guest.wait_for_shell()
    report = report_of(guest)
    assert estate.fetch(3128).status == 407
    credentials = base64.b64encode(f"ada:{report['password']}".encode()).decode()
    answer = estate.fetch(3128, f"Proxy-Authorization: Basic {credentials}")
    assert answer.body == BODY and "hit" in (answer.get("cache-status") or "")
    assert estate.origin.count(OBJECT) == 1
    assert '"quay.io"' in guest.shell("cat /etc/dduct/dduct.toml")
    assert "All set and ready to serve" in guest.shell("cat /etc/motd")


def bad_boot(estate: Estate) -> None:
    """A filter that is no regular expression: it is named, and nothing serves."""
    guest, gate = estate.guest, estate.gate
    begin = time.monotonic()
    estate.start(LISTEN_PORT="3128", KEEP_FILTERS="\\.deb$ (")
    while "ERROR" not in gate.attributes or gate.attributes.get("READY") != "NO":
        guest.still_running(begin, "ERROR")
        time.sleep(0.2)
    print(f"bad boot: {time.monotonic() - begin:.0f} s to ERROR")
    assert gate.attributes["ERROR"].startswith("dduct: ONEAPP_DDUCT_KEEP_FILTERS: ")
    guest.wait_for_shell()
    guest.shell("while systemctl is-active small-context-net | grep -q activating; do sleep 1; done")
    assert gate.attributes["READY"] == "NO"
    assert "ONEAPP_DDUCT_KEEP_FILTERS" in guest.shell("cat /etc/motd")
    assert guest.shell("systemctl is-active dduct || true").strip() == "inactive"
    assert guest.read(3128, "/healthz") is None
    configuration = guest.shell("cat /etc/dduct/dduct.toml")
    assert '"quay.io"' in configuration and "filters" not in configuration
