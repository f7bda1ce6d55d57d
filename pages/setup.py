"""`/setup`: instructions for each kind of client, and the script that follows them (`setup.sh` beside this file).

Rules of this module:

* The address of dduct comes from the client: an authority that was parsed, or the local address of the socket. It is
  still escaped for its context (shell, HTML): root runs the script.
* Texts hold `@NAME@` in place of a value. HTML escaping covers texts and values alike.
"""

from __future__ import annotations

import hashlib
import html
import pkgutil
import re
import ssl
from dataclasses import dataclass
from functools import lru_cache
from typing import Dict, Iterable, Tuple

from net.addresses import is_loopback
from net.arrival import Arrival
from pages.setup_clients import CLIENTS, ENVIRONMENT, NO_PROXY, NO_PROXY_CLUSTER, TRUST, Client, Run
from protocol import http1
from protocol.http1 import Authority, RequestHead


@dataclass(frozen=True)
class About:
    """Facts about this dduct for the pages: its authority's certificate, intercepted hosts, path patterns of cached
    objects (`filters`), and whether it asks for a password."""

    ca_pem: bytes
    hosts: Tuple[str, ...]
    filters: Tuple[str, ...]
    asks_password: bool

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate, as `openssl x509 -fingerprint -sha256` prints it."""
        digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(self.ca_pem.decode())).hexdigest().upper()
        return ":".join(re.findall("..", digest))


_USUAL = Authority("127.0.0.1", 8000)


@dataclass(frozen=True)
class Proxy:
    """The address of dduct as a client uses it; `arrival` is the local address of the connection."""

    authority: Authority
    encrypted: bool
    arrival: Authority = _USUAL

    @property
    def url(self) -> str:
        """The proxy URL for the client's settings."""
        return f"http{'s' if self.encrypted else ''}://{self.authority}"


def reached(request: RequestHead, arrival: Arrival) -> Proxy:
    """The proxy that a request used: the authority of its target or Host, or the address of the socket."""
    default = 443 if arrival.encrypted else 80
    try:
        if not request.target.startswith(b"/"):
            return Proxy(http1.parse_absolute(request.target).authority, arrival.encrypted, arrival.local)
        host = request.headers.get(b"host")
        authority = http1.parse_authority(host, default) if host else arrival.local
    except http1.ProtocolError:
        authority = arrival.local
    return Proxy(authority, arrival.encrypted, arrival.local)


# --- the script -------------------------------------------------------------------------------------

_FILLED_IN = re.compile(r"(?<=\n# --- dduct fills these in, and changes nothing else ---\n).*?(?=# --- end of )", re.S)


def script(proxy: Proxy, about: About) -> bytes:
    """`setup.sh` with this dduct's values at the top."""
    values = {
        "proxy": proxy.url,
        "fingerprint": about.fingerprint,
        "certificate": about.ca_pem.decode().strip(),
        "asks_password": "yes" if about.asks_password else "",
        "registries": " ".join(registries(about.hosts)),
    }
    lines = "".join(f"{name}={_quoted(value)}\n" for name, value in values.items())
    filled, places = _FILLED_IN.subn(lambda _: lines, _template())
    assert places == 1
    return filled.encode()


@lru_cache(maxsize=1)
def _template() -> str:
    data = pkgutil.get_data(__name__, "setup.sh")  # beside this file, in a directory as in a zip
    assert data is not None
    return data.decode()


def _quoted(text: str) -> str:
    """`text` as one word of sh, with any characters."""
    return "'" + text.replace("'", "'\\''") + "'"


# --- the page ---------------------------------------------------------------------------------------

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --dim: #57606a; --paper: #fff; --box: #f3f5f7; --line: #d4d9de;
  --link: #0a58b8; --note: #fff4d6 }
@media (prefers-color-scheme: dark) { :root { --ink: #e3e7eb; --dim: #9aa4ae; --paper: #14171a; --box: #1f2429;
  --line: #363d44; --link: #79b4ff; --note: #3a3010 } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 52rem; padding: 1rem 1.2rem 4rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, sans-serif; overflow-wrap: anywhere }
h1 { font-size: 1.6rem; margin: .5rem 0 } h2 { font-size: 1.2rem; margin: 2.4rem 0 .4rem; padding-top: .6rem;
  border-top: 1px solid var(--line) } p { margin: .6rem 0 }
a { color: var(--link) } code, pre { font: .875rem/1.5 ui-monospace, monospace } code { background: var(--box);
  padding: .1em .3em; border-radius: .25em }
pre { background: var(--box); border: 1px solid var(--line); border-radius: .4rem; padding: .7rem .9rem;
  margin: .5rem 0; white-space: pre-wrap } pre code { background: none; padding: 0 }
figure { margin: .7rem 0 } figcaption, .undo { color: var(--dim); font-size: .9rem } figure pre { margin-top: .2rem }
.note { background: var(--note); padding: .6rem .9rem; border-radius: .4rem }
nav { display: flex; flex-wrap: wrap; gap: .3rem .9rem; margin: 1rem 0 }
dt { color: var(--dim); margin-top: .5rem } dd { margin: 0 }
"""


def page(proxy: Proxy, about: About) -> bytes:
    """The page, as HTML."""
    host = proxy.authority.host
    direct = NO_PROXY if host in NO_PROXY.split(",") else f"{NO_PROXY},{host}"
    values = {
        "PROXY": proxy.url,
        "HOST": host,
        "PORT": str(proxy.authority.port),
        "NO_PROXY": direct,
        "NO_PROXY_CLUSTER": f"{direct},{NO_PROXY_CLUSTER}",
        # A client that does not trust the authority yet cannot verify TLS: its user compares the fingerprint.
        "FETCH": "curl -fsSk" if proxy.encrypted else "curl -fsS",
        "CURL": "curl -fsS --cacert ca.crt" if proxy.encrypted else "curl -fsS",
        "AUTHORITY": str(proxy.authority),
        **_mirror_values(proxy, registries(about.hosts)),
    }
    sections = [("ca", TRUST), ("environment", ENVIRONMENT), *((_anchor(one.name), one) for one in CLIENTS)]
    links = "\n".join(f'<a href="#{anchor}">{html.escape(client.name)}</a>' for anchor, client in sections)
    parts = [
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>dduct: setup</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{_STYLE}</style>\n</head>\n<body>",
        *_opening(proxy, about, values),
        f"<nav>\n{links}\n</nav>",
        *(_section(anchor, client, values) for anchor, client in sections),
        *_what_is_kept(about),
        "</body>\n</html>\n",
    ]
    return "\n".join(parts).encode()


# Names of registries as they stand in names of images. Those of clouds depend on account and region.
_REGISTRIES = (
    *("docker.io", "ghcr.io", "quay.io", "registry.k8s.io", "gcr.io", "mcr.microsoft.com", "public.ecr.aws", "nvcr.io"),
    *("registry.gitlab.com", "registry.redhat.io", "registry.access.redhat.com", "docker.elastic.co", "lscr.io"),
    "cgr.dev",
)


def registries(hosts: Tuple[str, ...]) -> Tuple[str, ...]:
    """The well-known registries among the intercepted hosts."""

    def is_listed(name: str) -> bool:
        host = "registry-1.docker.io" if name == "docker.io" else name
        return host in hosts or any(one.startswith("*.") and host.endswith(one[1:]) for one in hosts)

    return tuple(filter(is_listed, _REGISTRIES)) or ("registry.example",)


def _mirror_values(proxy: Proxy, names: Tuple[str, ...]) -> Dict[str, str]:
    """The settings for dduct as a mirror of registries with these names."""
    place = str(proxy.authority)
    block = f'[[registry]]\nprefix = "{{0}}"\nlocation = "{{0}}"\n[[registry.mirror]]\nlocation = "{place}/{{0}}"'
    if not proxy.encrypted:
        block += "\ninsecure = true"
    trusting = f"Put ca.crt into /etc/containers/certs.d/{place}/ as well."
    trusted = "The last line is about the way to dduct, which is without TLS."
    trust_yaml = f'\nconfigs:\n  "{place}":\n    tls:\n      ca_file: CA'
    return {
        "MIRROR_CONF": "\n\n".join(map(block.format, names)),
        "MIRROR_CONF_NOTE": trusting if proxy.encrypted else trusted,
        "MIRROR_YAML": "".join(f'\n  {name}:\n    endpoint: ["{proxy.url}"]' for name in names),
        "MIRROR_YAML_CA": trust_yaml if proxy.encrypted else "",
        "MIRROR_CA": '\n  ca = "CA"' if proxy.encrypted else "",
    }


def _opening(proxy: Proxy, about: About, values: Dict[str, str]) -> Iterable[str]:
    yield "<h1>Use this dduct</h1>"
    yield f"<dl>\n<dt>Proxy</dt><dd><code>{html.escape(proxy.url)}</code></dd>"
    yield '<dt>SHA-256 fingerprint of its authority (<a href="/ca.crt">ca.crt</a>)</dt>'
    yield f"<dd><code>{about.fingerprint}</code></dd>\n</dl>"
    if proxy.authority.host == "localhost" or is_loopback(proxy.authority.host):
        yield _note("This is the machine's own address. Ask for this page by a name or an address that others reach.")
    if about.asks_password:
        yield _note(
            "dduct asks for a user and a password here (proxy.auth_file). Write the proxy as `@SCHEME@://USER:PASSWORD@"
            "@AUTHORITY@` everywhere below, with special characters as %XX (in systemd's files as %%XX); for the "
            "script: `sh -s -- --proxy @SCHEME@://USER:PASSWORD@@AUTHORITY@`. Java does not take it from there. "
            "Mirrors have no place for a password: dduct refuses them.",
            SCHEME=proxy.url.partition(":")[0],
            AUTHORITY=str(proxy.authority),
        )
    if proxy.encrypted:
        yield _note(
            "This is the TLS port. curl, apt, dnf, git, pip, podman and Docker speak to such a proxy; Java and apk "
            "do not. `ca.crt` has to be there already; its names are those of `certs.server_dns_sans`."
        )
    yield _text("**All at once**: a script for Debian, Ubuntu, Alpine, RHEL and its kin, SUSE and Arch.", values)
    yield _snippet("@CURL@ @PROXY@/setup/sh | sudo sh", values)
    yield _text(
        "It puts the authority into the system's store and the proxy into the settings of logins, apt, dnf, zypper, "
        "pip and whichever of Docker, containerd, CRI-O, k3s and RKE2 is there, and says which to restart. Read it "
        "first: [setup/sh](/setup/sh). To take all of it back:",
        values,
    )
    yield _snippet("@CURL@ @PROXY@/setup/sh | sudo sh -s -- --undo", values)
    yield _text(
        "Container images alone also come without the authority and without a proxy, from dduct as a mirror: "
        "[containerd](#mirror-for-containerd), [k3s and RKE2](#mirror-for-k3s-rke2), "
        "[CRI-O and podman](#mirror-for-cri-o-podman-skopeo-buildah). The script sets that up with `--mirror`:",
        values,
    )
    yield _snippet("@CURL@ @PROXY@/setup/sh | sudo sh -s -- --mirror", values)
    if not proxy.encrypted:
        yield from _without_the_network(proxy, values)


def _without_the_network(proxy: Proxy, values: Dict[str, str]) -> Iterable[str]:
    yield _text(
        "What comes over plain http can be changed on the way, and this is run by root. Where you do not trust the "
        "network, fetch it in a way that you do trust, and compare the fingerprint with what dduct's machine says "
        "(`openssl x509 -in certs/ca.crt -noout -fingerprint -sha256`):",
        values,
    )
    at_home = f"http://{proxy.arrival}/setup/sh"
    yield _snippet(f"ssh DDUCT curl -fsS {at_home} | sudo sh -s -- --proxy @PROXY@", values)


def _section(anchor: str, client: Client, values: Dict[str, str]) -> str:
    lines = [f'<section id="{anchor}">', f"<h2>{html.escape(client.name)}</h2>"]
    for step in client.steps:
        if isinstance(step, str):
            lines.append(_text(step, values))
        elif isinstance(step, Run):
            lines.append(_snippet(step.text, values))
        else:
            caption = html.escape(step.path)
            lines.append(f"<figure><figcaption>{caption}</figcaption>{_snippet(step.text, values)}</figure>")
    lines.append(_text("Undo: " + client.undo, values, ' class="undo"'))
    return "\n".join([*lines, "</section>"])


def _what_is_kept(about: About) -> Iterable[str]:
    yield '<section id="kept">\n<h2>What dduct does with it</h2>'
    yield "<p>It answers in the name of these hosts; all others are tunnelled, and it sees nothing of them.</p>"
    yield f"<pre><code>{html.escape(chr(10).join(about.hosts) or '(none)')}</code></pre>"
    yield "<p>Of these, and of what comes over plain http, it keeps whatever has a path like one of:</p>"
    yield f"<pre><code>{html.escape(chr(10).join(about.filters) or '(none)')}</code></pre>\n</section>"


def _snippet(text: str, values: Dict[str, str]) -> str:
    return f"<pre><code>{html.escape(_filled(text, values))}</code></pre>"


_MARKS = (
    (re.compile(r"\*\*([^*]*)\*\*"), r"<strong>\1</strong>"),
    (re.compile(r"\[([^\]]*)\]\(([^)]*)\)"), r'<a href="\2">\1</a>'),
    (re.compile("`([^`]*)`"), r"<code>\1</code>"),
)


def _text(text: str, values: Dict[str, str], attributes: str = "") -> str:
    """A paragraph with `code`, **strong** and [links](#to) from `text`; values cannot add markup."""
    marked = html.escape(text)
    for pattern, replacement in _MARKS:
        marked = pattern.sub(replacement, marked)
    return f"<p{attributes}>{_filled(marked, {name: html.escape(value) for name, value in values.items()})}</p>"


def _note(text: str, **values: str) -> str:
    return _text(text, values, ' class="note"')


def _filled(text: str, values: Dict[str, str]) -> str:
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    return text


def _anchor(name: str) -> str:
    return re.sub("[^a-z0-9]+", "-", name.partition(" (")[0].lower()).strip("-")
