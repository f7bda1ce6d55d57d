"""The default of `cache.volatile` against paths as repositories have them."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import List

import pytest

from fetching.naming import Naming, Parameters, storage_name
from protocol.http1 import Authority, Target
from server import config
from server.moving_names import VOLATILE

SHA1 = "b4" * 20
SHA256 = "3f" * 32
MD5 = "a1" * 16

ANYTHING = Naming(
    (re.compile("/by-hash/SHA256/(?P<sha256>[0-9a-f]{64})$"), re.compile("^/")),
    Parameters(["token"]),
    tuple(map(re.compile, VOLATILE)),
)

MOVING = {
    "apt": """
        /debian/dists/bookworm/InRelease /debian/dists/bookworm/Release /debian/dists/bookworm/Release.gpg
        /debian/dists/bookworm/main/binary-amd64/Packages /debian/dists/bookworm/main/binary-amd64/Packages.xz
        /debian/dists/stable/main/binary-amd64/Packages.gz /debian/dists/stable/main/binary-all/Packages.bz2
        /debian/dists/sid/main/binary-amd64/Packages.zst /debian/dists/sid/main/source/Sources.lzma
        /ubuntu/dists/noble/universe/source/Sources.gz /debian/dists/sid/main/Contents-amd64.gz
        /debian/dists/sid/main/Contents-udeb-amd64.gz /debian/dists/sid/main/i18n/Translation-de.bz2
        /debian/dists/sid/main/i18n/Translation-en.xz /debian/dists/sid/main/dep11/Components-amd64.yml.xz
        /debian/dists/sid/main/dep11/icons-64x64.tar.gz /debian/dists/sid/main/cnf/Commands-amd64.xz
        /debian/dists/sid/main/binary-amd64/Packages.diff/Index /debian/dists/sid/main/Contents-amd64.diff/Index
        /debian/dists/sid/main/debian-installer/binary-amd64/Packages.gz /deb/./Packages.gz /Packages.gz
        /debian/ls-lR.gz /debian/dists/bookworm/main/installer-amd64/current/images/netboot/netboot.tar.gz""",
    "rpm-md": """
        /fedora/repodata/repomd.xml /fedora/repodata/repomd.xml.asc /r/repodata/repomd.xml.key
        /r/repodata/primary.xml.gz /r/repodata/filelists.xml.zst /r/repodata/other.xml.xz /r/repodata/updateinfo.xml.bz2
        /r/repodata/comps.xml /r/repodata/group.xml.gz /r/repodata/primary.xml.zck /r/repodata/primary.sqlite.bz2
        /r/repodata/primary_db.sqlite.xz /r/repodata/modules.yaml.gz /r/repodata/productid.gz
        /r/repodata/susedata.de.xml.gz /r/repodata/comps-BaseOS.x86_64.xml.gz""",
    "SUSE": """
        /opensuse/distribution/leap/media.1/media /opensuse/media.1/products /opensuse/content /opensuse/content.asc
        /opensuse/suse/setup/descr/packages.gz /opensuse/suse/setup/descr/packages.en.gz""",
    "apk": """
        /alpine/v3.20/main/x86_64/APKINDEX.tar.gz /alpine/edge/testing/aarch64/APKINDEX.tar.gz
        /openwrt/packages/x86_64/base/packages.adb""",
    "pacman and xbps": """
        /archlinux/core/os/x86_64/core.db /archlinux/core/os/x86_64/core.db.tar.gz /archlinux/core/os/x86_64/core.db.sig
        /archlinux/extra/os/x86_64/extra.files /archlinux/extra/os/x86_64/extra.files.tar.zst
        /void/current/x86_64-repodata""",
    "opkg and Slackware": """
        /openwrt/packages/x86_64/base/Packages.gz /openwrt/packages/x86_64/base/Packages.sig
        /slackware/slackware64-15.0/PACKAGES.TXT.gz /slackware/slackware64-15.0/CHECKSUMS.md5.gz
        /slackware/slackware64-15.0/slackware64/MANIFEST.bz2 /slackware/slackware64-15.0/FILELIST.TXT""",
    "gem": """
        /specs.4.8.gz /latest_specs.4.8.gz /gems/prerelease_specs.4.8.gz /versions /names /info/rails
        /quick/Marshal.4.8/rails-7.1.0.gemspec.rz /Marshal.4.8.Z""",
    "CPAN": """
        /modules/02packages.details.txt.gz /CPAN/authors/01mailrc.txt.gz /CPAN/modules/03modlist.data.gz
        /CPAN/modules/06perms.txt.gz /CPAN/authors/id/A/AB/ABC/CHECKSUMS /CPAN/indices/find-ls.gz""",
    "CRAN": """
        /src/contrib/PACKAGES /src/contrib/PACKAGES.gz /bin/windows/contrib/4.4/PACKAGES.rds
        /src/contrib/Meta/archive.rds""",
    "conda": """
        /conda-forge/noarch/repodata.json /conda-forge/noarch/repodata.json.zst /main/linux-64/repodata.json.bz2
        /main/linux-64/current_repodata.json.gz /main/linux-64/repodata_from_packages.json.bz2 /c/repodata.json.jlap
        /c/noarch/repodata_shards.msgpack.zst /c/channeldata.json.bz2 /c/noarch/run_exports.json.zst
        /c/noarch/patch_instructions.json.zst""",
    "Hackage and LuaRocks": """
        /01-index.tar.gz /00-index.tar.gz /timestamp.json /snapshot.json /manifest-5.1.zip /manifests/x/manifest-5.4.zip
        /manifest.zip""",
    "OSTree, Nix, git": """
        /repo/summary /repo/summary.sig /repo/config /repo/refs/heads/fedora/40/x86_64/silverblue
        /channels/nixos-unstable/nixexprs.tar.xz /x.git/info/refs""",
    "charts and the like": """
        /charts/index.yaml /charts/index.yaml.gz /v3/index.json /streams/v1/index.json /repo/index-v2.json
        /m2/org/a/b/maven-metadata.xml /m2/org/a/b/maven-metadata.xml.sha1 /m2/a/1.0-SNAPSHOT/maven-metadata.xml
        /m2/a/1.0-SNAPSHOT/a-1.0-SNAPSHOT.zip /p2/symfony/console.json /packages.json /golang.org/x/net/@v/list
        /golang.org/x/net/@latest /simple/requests/ /simple/ /pypi/requests/json /v2/library/alpine/manifests/3.20
        /v2/library/alpine/manifests/latest /v2/library/alpine/tags/list""",
    "moving releases": """
        /releases/latest/download/tool-linux.tar.gz /tool/latest.tar.gz /portage-latest.tar.xz
        /stage3-amd64-latest.tar.xz /Miniconda3-latest-Linux-x86_64.zip
        /cloud/jammy/current/jammy-root.tar.xz /builds/nightly/x.zip
        /a/b/archive/refs/heads/main.tar.gz /a/b/archive/master.zip /a/b/tar.gz/refs/heads/main /a/b/zip/main
        /a/b/-/archive/main/b-main.tar.gz /m/resolve/main/weights.zip /dist/rust-nightly-x86_64-unknown-linux-gnu.tar.gz
        /dist/channel-rust-stable.tar.gz /iso/SHA256SUMS /iso/SHA512SUMS.gz""",
}

LASTING = f"""
    /pool/main/h/hello/hello_2.10-3_amd64.deb /debian/pool/main/libr/librust-current-platform-dev/x_0.1_amd64.deb
    /debian/dists/bookworm/main/binary-amd64/by-hash/SHA256/{SHA256} /debian/dists/x/by-hash/SHA1/{SHA1}
    /debian/dists/x/main/source/by-hash/MD5Sum/{MD5} /debian/dists/latest/main/by-hash/SHA1/{SHA1}
    /debian/dists/sid/main/binary-amd64/Packages.diff/T-2026-11-29-2005.30-F-2026-11-28-0203.07.gz
    /debian/dists/sid/main/binary-amd64/Packages.diff/2026-11-29-0203.07.gz
    /pool/main/h/hello/hello_2.10.orig.tar.xz /pool/main/h/hello/hello_2.10-3.debian.tar.xz
    /r/repodata/{SHA256}-primary.xml.gz /r/repodata/{SHA1}-filelists.sqlite.bz2 /r/repodata/{MD5}-other.xml.gz
    /latest/repodata/{SHA256}-primary.xml.zst /r/repodata/{"9c" * 64}-updateinfo.xml.xz
    /fedora/Packages/b/bash-5.2.26-3.fc40.x86_64.rpm /alpine/v3.20/main/x86_64/busybox-1.36.1-r29.apk
    /archlinux/core/os/x86_64/bash-5.2.026-2-x86_64.pkg.tar.zst /gems/rails-7.1.0.gem
    /CPAN/authors/id/A/AB/ABC/Moose-2.2206.tar.gz /src/contrib/Archive/abc/abc_1.0.tar.gz /src/contrib/abc_2.2.1.tar.gz
    /conda-forge/noarch/requests-2.32.3-pyhd8ed1ab_0.conda /conda-forge/noarch/requests-2.32.3-pyhd8ed1ab_0.tar.bz2
    /shards/{SHA256}.msgpack.zst /package/aeson-2.2.3.0/aeson-2.2.3.0.tar.gz /manifests/luasocket-3.0.tar.gz
    /packages/aa/bb/{"c" * 60}/requests-2.32.3-py3-none-any.whl /nar/{"0a1b2c3d" * 4}.nar.xz
    /v2/library/alpine/blobs/sha256:{SHA256} /v2/library/alpine/manifests/sha256:{SHA256}
    /lodash/-/lodash-4.17.21.tgz /latest-version/-/latest-version-5.1.0.tgz /api/v1/crates/serde/1.0.0/download.crate
    /kubernetes/v1.31.0/kubernetes.tar.gz /go/go1.23.0.linux-amd64.tar.gz /linux/kernel/v6.x/linux-6.11.tar.xz
    /a/b/archive/refs/tags/v1.0.tar.gz /a/b/archive/{SHA1}.tar.gz /a/b/releases/download/v1.0/index.tar.gz
    /flatpak/objects/ab/{SHA256[:62]}.filez /repo/summaries/{SHA256}.gz
    /dist/rust-1.82.0-x86_64-unknown-linux-gnu.tar.xz
""".split()


def is_volatile(path: str) -> bool:
    name = storage_name(Target("https", Authority("h", 443), path), ANYTHING)
    assert name is not None
    return name.volatile


@pytest.mark.parametrize("kind", MOVING)
def test_an_index_with_a_fixed_name_is_volatile(kind: str) -> None:
    assert [path for path in MOVING[kind].split() if not is_volatile(path)] == []


def test_a_name_with_version_or_hash_is_not_volatile() -> None:
    assert [path for path in LASTING if is_volatile(path)] == []


def test_escapes_and_queries_make_no_difference() -> None:
    target = Target("https", Authority("h", 443), "/dists/x/%49n%52elease", "token=1&x=2")
    name = storage_name(target, ANYTHING)
    assert name is not None and name.volatile and name.path == "https/h/dists/x/InRelease?x=2"


def test_an_operators_pattern_cannot_make_a_hash_volatile() -> None:
    everything = Naming(ANYTHING.filters, Parameters([]), (re.compile(""),))
    for path, expected in (("/a.deb", True), (f"/by-hash/SHA256/{SHA256}", False), (f"/x/{MD5.upper()}.gz", False)):
        name = storage_name(Target("http", Authority("h", 80), path), everything)
        assert name is not None and name.volatile is expected


def test_the_default_configuration_has_the_volatile_pattern(tmp_path: Path) -> None:
    assert tuple(pattern.pattern for pattern in config.defaults(tmp_path).cache.volatile) == VOLATILE


def hostile(pattern: str) -> List[str]:
    """Texts in which a search may start at many places or end in many ways."""
    words = re.findall(r"[A-Za-z][A-Za-z0-9_-]+", re.sub(r"\[[^\]]*\]", "", pattern))
    pieces = ["/", "a", ".", "-", ".a", "/a", "a-", "0", *words, *("/" + word for word in words)]
    return pieces + [f"{word}{mark}" for word in words for mark in ("/", ".", "-", "-a.")]


@pytest.mark.parametrize("pattern", VOLATILE)
def test_no_pattern_takes_more_than_linear_time(pattern: str) -> None:
    compiled = re.compile(pattern)
    for piece in hostile(pattern):
        for begin, end in (("/", "\x01"), ("/repodata/", "/\x01")):
            path = begin + piece * (16384 // len(piece)) + end
            started = time.process_time()
            compiled.search(path)
            assert time.process_time() - started < 0.05, (piece, end)  # measured: at most two milliseconds
