"""The page `/setup`: complete for every client, and safe whatever a client calls the host."""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser
from typing import Dict, List, Optional, Tuple

import pytest

from net.addresses import Reach
from net.arrival import Arrival
from pages import setup
from pages.setup import About, Proxy
from protocol.headers import Headers
from protocol.http1 import Authority, RequestHead

CA = """-----BEGIN CERTIFICATE-----
ZHVjdA==
-----END CERTIFICATE-----
"""
ABOUT = About(CA.encode(), ("*.docker.io", "ghcr.io"), (r"\.deb$", "<b>"), False)
PROXY = Proxy(Authority("proxy.lab", 8000), False)
URL = "http://proxy.lab:8000"


CLIENTS = {
    "openrc": ["/etc/conf.d/docker", f'export HTTP_PROXY="{URL}"', "/etc/rancher/k3s/k3s.env"],
    "docker": ["/etc/systemd/system/docker.service.d/zz-dduct.conf", "~/.docker/config.json", "httpsProxy"],
    "containerd": ["/etc/systemd/system/containerd.service.d/zz-dduct.conf", "systemctl restart containerd"],
    "cri-o": ["/etc/systemd/system/crio.service.d/zz-dduct.conf", "systemctl restart crio"],
    "podman-buildah-skopeo": ["--cert-dir"],
    "buildkit": ["--driver-opt env.https_proxy=" + URL, '[registry."docker.io"]'],
    "k3s-rke2": ["/etc/systemd/system/k3s.service.env", "/etc/default/rke2-server", ".svc,.cluster.local"],
    "mirror-for-containerd": [
        "/etc/containerd/certs.d/_default/hosts.toml",
        f'[host."{URL}"]\n  capabilities = ["pull", "resolve"]',
        'config_path = "/etc/containerd/certs.d"',
        "io.containerd.cri.v1.images",
    ],
    "mirror-for-k3s-rke2": [
        "/etc/rancher/k3s/registries.yaml",
        "/etc/rancher/rke2/registries.yaml",
        f'mirrors:\n  docker.io:\n    endpoint: ["{URL}"]\n  ghcr.io:\n    endpoint: ["{URL}"]',
    ],
    "mirror-for-cri-o-podman-skopeo-buildah": [
        "/etc/containers/registries.conf.d/zz-dduct.conf",
        'prefix = "docker.io"\nlocation = "docker.io"\n[[registry.mirror]]\nlocation = "proxy.lab:8000/docker.io"',
        "\ninsecure = true",
        "podman login proxy.lab:8000",
        "systemctl reload crio",
    ],
    "apt": ["/etc/apt/apt.conf.d/zz-dduct", f'Acquire::https::Proxy "{URL}";'],
    "dnf-yum": ["/etc/dnf/dnf.conf", f"[main]\nproxy={URL}"],
    "apk": ["apk update"],
    "zypper": ["/etc/sysconfig/proxy", 'PROXY_ENABLED="yes"', f'HTTPS_PROXY="{URL}"'],
    "pip": ["/etc/pip.conf", "[global]\ncert = BUNDLE"],
    "uv": ["SSL_CERT_FILE", "UV_SYSTEM_CERTS=true", "UV_NATIVE_TLS=true"],
    "npm-yarn-pnpm": [
        "NODE_EXTRA_CA_CERTS",
        f"https-proxy={URL}",
        "~/.yarnrc.yml",
        f'httpsProxy: "{URL}"',
        "httpsCaFilePath",
    ],
    "cargo": ["~/.cargo/config.toml", f'proxy = "{URL}"', 'cainfo = "BUNDLE"'],
    "go": ["go mod download"],
    "git": [f"http.proxy {URL}", "http.sslCAInfo"],
    "curl-wget": ["~/.curlrc", f'proxy = "{URL}"'],
    "java": [
        "keytool -importcert",
        "$JAVA_HOME/jre/lib/security/cacerts",
        "-Dhttps.proxyHost=proxy.lab",
        "-Dhttps.proxyPort=8000",
    ],
    "ca": ["update-ca-certificates", "update-ca-trust", f"{URL}/ca.crt"],
    "environment": [f"https_proxy='{URL}'", "NODE_EXTRA_CA_CERTS"],
    "kept": ["*.docker.io\nghcr.io", "\\.deb$\n<b>"],
}
ALONE = {"meta", "br"}


class Reader(HTMLParser):
    """The text of each section; what is open must be closed, in order, and every link in the page leads somewhere."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.open: List[str] = []
        self.ids: List[str] = []
        self.links: List[str] = []
        self.tags: List[str] = []
        self.texts: Dict[str, str] = {"": ""}
        self._section = ""
        self.feed(page.decode())
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: List[Tuple[str, Optional[str]]]) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        if tag not in ALONE:
            self.open.append(tag)
        if values.get("id"):
            self._section = values["id"] or ""
            self.ids.append(self._section)
            self.texts[self._section] = ""
        self.links += [value for value in (values.get("href"), values.get("src")) if value]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag == "section":
            self._section = ""

    def handle_data(self, data: str) -> None:
        self.texts[self._section] += data


@pytest.mark.parametrize("client", list(CLIENTS))
def test_the_page_explains_setup_and_undo_for_every_client(client: str) -> None:
    text = Reader(setup.page(PROXY, ABOUT)).texts[client]
    assert [words for words in CLIENTS[client] if words not in text] == []
    assert client == "kept" or "Undo: " in text


def test_mirrors_inside_tls_are_trusted_by_the_authority() -> None:
    texts = Reader(setup.page(Proxy(Authority("proxy.lab", 4430), True), ABOUT)).texts
    assert '[host."https://proxy.lab:4430"]' in texts["mirror-for-containerd"]
    assert 'ca = "CA"' in texts["mirror-for-containerd"]
    assert 'configs:\n  "proxy.lab:4430":\n    tls:\n      ca_file: CA' in texts["mirror-for-k3s-rke2"]
    podman = texts["mirror-for-cri-o-podman-skopeo-buildah"]
    assert "insecure" not in podman and "/etc/containers/certs.d/proxy.lab:4430/" in podman


@pytest.mark.parametrize(
    ("hosts", "names"),
    [
        (("*.docker.io", "*.k8s.io", "10.0.0.1", "pypi.org"), ("docker.io", "registry.k8s.io")),
        (("registry-1.docker.io", "quay.io"), ("docker.io", "quay.io")),
        (("docker.io", "*.quay.io", "evilghcr.io"), ("registry.example",)),
        ((), ("registry.example",)),
    ],
)
def test_mirrors_are_shown_for_listed_registries(hosts: Tuple[str, ...], names: Tuple[str, ...]) -> None:
    assert setup.registries(hosts) == names


def test_the_page_is_complete_and_links_only_to_itself() -> None:
    reader = Reader(setup.page(PROXY, ABOUT))
    assert set(CLIENTS) == set(reader.ids) and len(set(reader.ids)) == len(reader.ids)
    assert {link for link in reader.links if not link.startswith("#")} == {"/ca.crt", "/setup/sh"}
    assert {link[1:] for link in reader.links if link.startswith("#")} <= set(reader.ids)
    assert "script" not in reader.tags
    assert not re.search("@[A-Z_]+@", "".join(reader.texts.values()))


@pytest.mark.parametrize("host", ['x"><script>alert(1)</script>', "x'y", "x`y`", "[a](javascript:b)", "@PORT@"])
def test_a_host_cannot_inject_html(host: str) -> None:
    reader = Reader(setup.page(Proxy(Authority(host, 1), True), ABOUT))
    plain = Reader(setup.page(Proxy(Authority("h", 1), True), ABOUT))
    assert (reader.tags, reader.links) == (plain.tags, plain.links)


def asked(target: str, *fields: Tuple[bytes, bytes]) -> RequestHead:
    return RequestHead(b"GET", target.encode(), 1, Headers(list(fields)))


@pytest.mark.parametrize(
    ("request_head", "encrypted", "url"),
    [
        (asked("/setup", (b"Host", b"proxy.lab:8000")), False, "http://proxy.lab:8000"),
        (asked("/setup", (b"Host", b"proxy.lab")), False, "http://proxy.lab:80"),
        (asked("/setup", (b"Host", b"proxy.lab")), True, "https://proxy.lab:443"),
        (asked("/setup", (b"Host", b"[2001:DB8::1]:80")), False, "http://[2001:db8::1]:80"),
        (asked("http://192.0.2.1:8000/setup", (b"Host", b"else")), False, "http://192.0.2.1:8000"),
        (asked("/setup"), False, "http://192.0.2.9:8000"),
        (asked("/setup", (b"Host", b"")), True, "https://192.0.2.9:8000"),
        (asked("/setup", (b"Host", b"a'b")), False, "http://192.0.2.9:8000"),
    ],
)
def test_the_page_names_the_proxy_as_the_client_reached_it(
    request_head: RequestHead, encrypted: bool, url: str
) -> None:
    where = Arrival(Authority("192.0.2.9", 8000), Reach.NOTHING, encrypted=encrypted)
    proxy = setup.reached(request_head, where)
    assert proxy.url == url
    # On dduct's own machine its script is fetched from where the client has arrived, whatever a name may mean there.
    if not encrypted:
        assert "ssh DDUCT curl -fsS http://192.0.2.9:8000/setup/sh" in setup.page(proxy, ABOUT).decode()


@pytest.mark.parametrize(
    ("host", "noted"),
    [("localhost", True), ("127.0.0.5", True), ("::1", True), ("127.lab.example", False), ("10.0.0.1", False)],
)
def test_a_page_that_was_found_by_an_address_that_only_this_machine_reaches_says_so(host: str, noted: bool) -> None:
    page = setup.page(setup.Proxy(Authority(host, 8000), encrypted=False), ABOUT).decode()
    assert ("This is the machine's own address." in html.unescape(page)) is noted


def test_the_page_mentions_no_password_unless_one_is_required() -> None:
    assert "PASSWORD" not in setup.page(PROXY, ABOUT).decode()
