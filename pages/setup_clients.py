"""What `/setup` says for each kind of client: steps and how to undo them, as data. `@NAME@` stands for a value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Tuple, Union


@dataclass(frozen=True)
class File:
    """A file and its content."""

    path: str
    text: str


@dataclass(frozen=True)
class Run:
    """Commands to run."""

    text: str


Step = Union[str, File, Run]  # a str is a sentence, with `code` in it


@dataclass(frozen=True)
class Client:
    """One kind of client: its steps in order, and how to undo them."""

    name: str
    steps: Tuple[Step, ...]
    undo: str


# The same lists as in setup.sh.
NO_PROXY = "localhost,127.0.0.1,::1,.local,.localdomain,.internal,.lan,.home.arpa"
NO_PROXY_CLUSTER = "127.0.0.0/8,10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,.svc,.cluster.local"
_DROP_IN = '[Service]\nEnvironment="HTTP_PROXY=@PROXY@" "HTTPS_PROXY=@PROXY@"\nEnvironment="NO_PROXY=@NO_PROXY@"'
_DROP_IN_CLUSTER = _DROP_IN.replace("@NO_PROXY@", "@NO_PROXY_CLUSTER@")
_CLUSTER_ENVIRONMENT = "HTTP_PROXY=@PROXY@\nHTTPS_PROXY=@PROXY@\nNO_PROXY=@NO_PROXY_CLUSTER@"
_BY_ENVIRONMENT = "It takes the proxy from the [environment](#environment) and the authority from the [system](#ca)."

_MIRROR = (
    "Without a proxy and without the authority, for images alone: the registry itself is asked where dduct is away, or "
    "has no such image. "
)


def _unit(name: str, title: str, drop_in: str, more: Tuple[Step, ...] = ()) -> Client:
    path = f"/etc/systemd/system/{name}.service.d/zz-dduct.conf"
    restart = f"systemctl daemon-reload && systemctl restart {name}"
    steps = ("Trust [the authority](#ca) first: it is read at the start.", File(path, drop_in), Run(restart), *more)
    return Client(title, steps, f"remove `{path}`, then `{restart}`.")


TRUST = Client(
    "The authority, for the whole system",
    (
        "Before it is trusted, compare the fingerprint of what has been fetched with the one above: "
        "`openssl x509 -in FILE -noout -fingerprint -sha256`. Debian, Ubuntu, Alpine (package `ca-certificates`):",
        Run("@FETCH@ -o /usr/local/share/ca-certificates/dduct.crt @PROXY@/ca.crt\nupdate-ca-certificates"),
        "RHEL, Alma, Rocky, Fedora:",
        Run("@FETCH@ -o /etc/pki/ca-trust/source/anchors/dduct.pem @PROXY@/ca.crt\nupdate-ca-trust"),
        "openSUSE, SLES:",
        Run("@FETCH@ -o /etc/pki/trust/anchors/dduct.pem @PROXY@/ca.crt\nupdate-ca-certificates"),
        "Arch:",
        Run("@FETCH@ -o /etc/ca-certificates/trust-source/anchors/dduct.crt @PROXY@/ca.crt\nupdate-ca-trust"),
        "Below, `BUNDLE` is the file with all that the system trusts: `/etc/ssl/certs/ca-certificates.crt` (Debian, "
        "Ubuntu, Alpine, Arch), `/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem` (RHEL, Alma, Rocky, Fedora), "
        "`/etc/ssl/ca-bundle.pem` (SUSE); and `CA` the file that you have just written.",
    ),
    "remove the file, then run `update-ca-certificates --fresh` (Debian, Ubuntu, Alpine) or the same command again.",
)

ENVIRONMENT = Client(
    "The environment",
    (
        "Nearly every program on a command line takes its proxy from here.",
        File(
            "/etc/profile.d/zz-dduct.sh",
            "export http_proxy='@PROXY@' https_proxy='@PROXY@'\nexport HTTP_PROXY='@PROXY@' HTTPS_PROXY='@PROXY@'\n"
            "export no_proxy='@NO_PROXY@'\nexport NO_PROXY='@NO_PROXY@'\nexport NODE_EXTRA_CA_CERTS=CA\n"
            "export SSL_CERT_FILE=BUNDLE REQUESTS_CA_BUNDLE=BUNDLE",
        ),
        "New logins have it. Where PAM reads `/etc/environment`, the same lines there (without `export` and quotes) "
        "reach sudo, cron and ssh as well.",
    ),
    "remove the file (and the lines).",
)

CLIENTS = (
    _unit(
        "docker",
        "Docker",
        _DROP_IN_CLUSTER,
        (
            "That is what pulls and pushes. What runs in containers and in `docker build` has settings of its own:",
            File(
                "~/.docker/config.json",
                '{\n  "proxies": {\n    "default": {\n      "httpProxy": "@PROXY@",\n      "httpsProxy": "@PROXY@",\n'
                '      "noProxy": "@NO_PROXY@"\n    }\n  }\n}',
            ),
            "An image that is to download over https must trust the authority too: in its Dockerfile, "
            "`RUN curl -fsS @PROXY@/setup/sh | sh`, and at the end the same with `sh -s -- --undo`.",
        ),
    ),
    _unit("containerd", "containerd", _DROP_IN_CLUSTER),
    _unit("crio", "CRI-O", _DROP_IN_CLUSTER),
    Client(
        "OpenRC (Docker, containerd, k3s on Alpine)",
        (
            "Trust [the authority](#ca) first: it is read at the start.",
            File(
                "/etc/conf.d/docker (or containerd; k3s: /etc/rancher/k3s/k3s.env)",
                'export HTTP_PROXY="@PROXY@" HTTPS_PROXY="@PROXY@"\nexport NO_PROXY="@NO_PROXY_CLUSTER@"',
            ),
            Run("rc-service docker restart"),
        ),
        "remove the lines and restart.",
    ),
    Client(
        "podman, buildah, skopeo",
        (
            _BY_ENVIRONMENT,
            Run("podman pull quay.io/podman/hello"),
            "podman hands the proxy on to its containers. Without the system's store: `--cert-dir DIR`, with `ca.crt` "
            "in it.",
        ),
        "nothing; there are no settings of its own.",
    ),
    Client(
        "BuildKit (docker buildx)",
        (
            "The builder in Docker itself has Docker's settings. One in a container has its own; name each registry:",
            File("buildkitd.toml", '[registry."docker.io"]\n  ca = ["CA"]\n[registry."ghcr.io"]\n  ca = ["CA"]'),
            Run(
                "docker buildx create --name dduct --driver docker-container --use --bootstrap \\\n"
                "  --buildkitd-config buildkitd.toml \\\n  --driver-opt env.http_proxy=@PROXY@ \\\n"
                "  --driver-opt env.https_proxy=@PROXY@ \\\n  --driver-opt '\"env.no_proxy=@NO_PROXY@\"'"
            ),
            "In older versions of buildx the option is called `--config`.",
        ),
        "`docker buildx rm dduct`",
    ),
    Client(
        "k3s, RKE2",
        (
            "Trust [the authority](#ca) first, on every node. k3s and RKE2 hand these on to their containerd:",
            File("/etc/systemd/system/k3s.service.env (agents: k3s-agent.service.env)", _CLUSTER_ENVIRONMENT),
            Run("systemctl restart k3s"),
            File("/etc/default/rke2-server (agents: rke2-agent)", _CLUSTER_ENVIRONMENT),
            Run("systemctl restart rke2-server"),
            "`NO_PROXY` must cover the addresses of nodes, pods and services. `CONTAINERD_HTTP_PROXY`, "
            "`CONTAINERD_HTTPS_PROXY` and `CONTAINERD_NO_PROXY` in their place reach containerd alone.",
        ),
        "remove the lines and restart.",
    ),
    Client(
        "Mirror for containerd",
        (
            _MIRROR + "containerd asks dduct about every registry, and gets a 404 at once for one that is not listed.",
            File(
                "/etc/containerd/certs.d/_default/hosts.toml",
                '[host."@PROXY@"]\n  capabilities = ["pull", "resolve"]@MIRROR_CA@',
            ),
            "A folder for one registry (`certs.d/docker.io`) comes before `_default`. containerd reads them where its "
            "configuration says so:",
            File(
                "/etc/containerd/config.toml",
                '[plugins."io.containerd.grpc.v1.cri".registry]\n  config_path = "/etc/containerd/certs.d"',
            ),
            'In containerd 2, the section is `[plugins."io.containerd.cri.v1.images".registry]`. Once it is there:',
            Run("systemctl restart containerd"),
        ),
        "remove `hosts.toml`; nothing has to be restarted.",
    ),
    Client(
        "Mirror for k3s, RKE2",
        (
            _MIRROR + "On every node; each further registry takes an entry of its own.",
            File(
                "/etc/rancher/k3s/registries.yaml (RKE2: /etc/rancher/rke2/registries.yaml)",
                "mirrors:@MIRROR_YAML@@MIRROR_YAML_CA@",
            ),
            Run("systemctl restart k3s  # or k3s-agent, rke2-server, rke2-agent"),
        ),
        "remove the entries and restart.",
    ),
    Client(
        "Mirror for CRI-O, podman, skopeo, buildah",
        (
            _MIRROR + "Each further registry takes a block of its own; one on another port than 443 cannot have one.",
            File("/etc/containers/registries.conf.d/zz-dduct.conf", "@MIRROR_CONF@"),
            "@MIRROR_CONF_NOTE@",
            Run("systemctl reload crio  # CRI-O alone"),
            "A password for a registry is the mirror's, too: `podman login @AUTHORITY@`, or an entry of that name in "
            "`auth.json`. dduct passes it on to the registry's token server.",
        ),
        "remove the file; `systemctl reload crio`.",
    ),
    Client(
        "apt",
        (
            File(
                "/etc/apt/apt.conf.d/zz-dduct",
                'Acquire::http::Proxy "@PROXY@";\nAcquire::https::Proxy "@PROXY@";\n'
                'Acquire::http::Proxy::localhost "DIRECT";\nAcquire::https::Proxy::localhost "DIRECT";',
            ),
            Run("apt-get update"),
            "Repositories over http need no authority; those over https take the [system's](#ca).",
        ),
        "remove the file.",
    ),
    Client(
        "dnf, yum",
        (
            File("/etc/dnf/dnf.conf (yum: /etc/yum.conf)", "[main]\nproxy=@PROXY@"),
            "The line goes below the `[main]` that is there. The authority is the [system's](#ca).",
        ),
        "remove the line.",
    ),
    Client("apk", (_BY_ENVIRONMENT, Run("apk update")), "nothing; there are no settings of its own."),
    Client(
        "zypper",
        (
            File(
                "/etc/sysconfig/proxy",
                'PROXY_ENABLED="yes"\nHTTP_PROXY="@PROXY@"\nHTTPS_PROXY="@PROXY@"\nNO_PROXY="localhost, 127.0.0.1"',
            ),
            Run("zypper refresh"),
            "In place of the lines of these names that are there. The authority is the [system's](#ca).",
        ),
        'put back what was there (`PROXY_ENABLED="no"`).',
    ),
    Client(
        "pip",
        (
            File("/etc/pip.conf", "[global]\ncert = BUNDLE"),
            "The proxy comes from the [environment](#environment), or from `proxy = @PROXY@` in the same section "
            "(then for all hosts). Since 24.2, on Python 3.10 and later, pip believes the system by itself; before, "
            "and for whatever else uses requests, `REQUESTS_CA_BUNDLE=BUNDLE` does.",
        ),
        "remove the lines.",
    ),
    Client(
        "uv",
        (
            "It brings authorities of its own, and takes the proxy from the [environment](#environment).",
            Run("export SSL_CERT_FILE=BUNDLE"),
            "Or `UV_SYSTEM_CERTS=true` (`--system-certs`), which was `UV_NATIVE_TLS=true` (`--native-tls`) in older "
            "versions. Where `SSL_CERT_FILE` is set, that is what counts.",
        ),
        "`unset SSL_CERT_FILE`",
    ),
    Client(
        "npm, yarn, pnpm",
        (
            "Node.js brings authorities of its own; this one comes on top:",
            Run("export NODE_EXTRA_CA_CERTS=CA"),
            File("~/.npmrc", "proxy=@PROXY@\nhttps-proxy=@PROXY@"),
            "Yarn from version 2 on reads neither that file nor the environment:",
            File("~/.yarnrc.yml", 'httpProxy: "@PROXY@"\nhttpsProxy: "@PROXY@"\nhttpsCaFilePath: "BUNDLE"'),
            "npm also takes the proxy from the [environment](#environment). `cafile=BUNDLE` would do as well; it is "
            "in place of Node's own.",
        ),
        "`unset NODE_EXTRA_CA_CERTS`; `npm config delete proxy https-proxy`; remove the lines.",
    ),
    Client(
        "cargo",
        (
            File("~/.cargo/config.toml", '[http]\nproxy = "@PROXY@"\ncainfo = "BUNDLE"'),
            "With the [environment](#environment) and the [system's](#ca) authorities none of this is needed.",
        ),
        "remove the lines.",
    ),
    Client(
        "go",
        (_BY_ENVIRONMENT, Run("go mod download"), "Modules are kept as far as a filter matches them (`.zip`)."),
        "nothing; there are no settings of its own.",
    ),
    Client(
        "git",
        (
            _BY_ENVIRONMENT + " Or:",
            Run("git config --global http.proxy @PROXY@\ngit config --global http.sslCAInfo BUNDLE"),
        ),
        "`git config --global --unset http.proxy; git config --global --unset http.sslCAInfo`",
    ),
    Client(
        "curl, wget",
        (
            _BY_ENVIRONMENT + " Or, for curl:",
            File("~/.curlrc", 'proxy = "@PROXY@"\ncacert = "BUNDLE"'),
        ),
        "remove the lines.",
    ),
    Client(
        "Java (Maven, Gradle, sbt)",
        (
            "Java has a store of its own. That of Debian's and RHEL's packages follows the [system's](#ca); in others:",
            Run("keytool -importcert -noprompt -cacerts -storepass changeit -alias dduct -file CA"),
            "Java 8 does not know `-cacerts`: `-keystore $JAVA_HOME/jre/lib/security/cacerts` in its place.",
            "It asks the environment for nothing:",
            Run(
                "export JAVA_TOOL_OPTIONS='-Dhttp.proxyHost=@HOST@ -Dhttp.proxyPort=@PORT@ "
                "-Dhttps.proxyHost=@HOST@ -Dhttps.proxyPort=@PORT@ -Dhttp.nonProxyHosts=localhost|127.*|*.local'"
            ),
            "These speak to the plain port (`tcp_bind`) only. Maven: `<proxies>` in `~/.m2/settings.xml`; "
            "Gradle: `systemProp.https.proxyHost` and so on in `~/.gradle/gradle.properties`.",
        ),
        "`keytool -delete -cacerts -storepass changeit -alias dduct`; `unset JAVA_TOOL_OPTIONS`",
    ),
)
