"""The default of `cache.metadata` against URLs as registries have them: how long each may be sent without asking."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Optional

import pytest

from fetching.naming import Naming, Parameters, storage_name
from protocol.http1 import parse_absolute
from server import config

DIGEST = "sha256:" + "3f" * 32
MONTH = 30 * 86400.0
ALWAYS, NEVER_KEPT = 0.0, None
KNOWN = [
    ("https://registry.example/v2/library/app/manifests/latest", ALWAYS),
    ("https://registry.example/v2/library/app/tags/list", ALWAYS),
    ("https://pypi.org/simple/requests/", ALWAYS),
    ("https://pypi.org/simple/", ALWAYS),
    ("https://files.example/p/requests-2.32.3-py3-none-any.whl.metadata", MONTH),
    ("https://registry.npmjs.org/@types%2fnode", ALWAYS),
    ("https://registry.npmjs.org/lodash", ALWAYS),
    ("https://elsewhere.example/lodash", NEVER_KEPT),
    ("https://registry.npmjs.org/-/whoami", NEVER_KEPT),
    ("https://index.crates.io/se/rd/serde", ALWAYS),
    ("https://proxy.golang.org/golang.org/x/net/@v/list", ALWAYS),
    ("https://proxy.golang.org/golang.org/x/net/@latest", ALWAYS),
    ("https://proxy.golang.org/golang.org/x/net/@v/v0.17.0.info", MONTH),
    ("https://proxy.golang.org/golang.org/x/net/@v/v0.17.0.mod", MONTH),
    ("https://proxy.golang.org/github.com/!azure/x/@v/v1.2.3-rc.1+incompatible.info", MONTH),
    ("https://proxy.golang.org/github.com/a/b/@v/v0.0.0-20200101000000-0123456789ab.mod", MONTH),
    # A branch, a prefix of versions, a commit: what they mean changes.
    ("https://proxy.golang.org/golang.org/x/net/@v/master.info", ALWAYS),
    ("https://proxy.golang.org/golang.org/x/net/@v/v1.info", ALWAYS),
    ("https://proxy.golang.org/golang.org/x/net/@v/0123456789ab.info", ALWAYS),
    ("https://sum.golang.org/latest", ALWAYS),
    ("https://deb.example/debian/dists/stable/InRelease", ALWAYS),
    ("https://rpm.example/repodata/repomd.xml", ALWAYS),
    ("https://maven.example/org/x/maven-metadata.xml.sha1", ALWAYS),
]


@pytest.fixture(scope="module")
def naming(tmp_path_factory: pytest.TempPathFactory) -> Naming:
    found = config.defaults(Path(tmp_path_factory.mktemp("home")))
    return Naming(found.proxy.filters, Parameters(()), metadata=found.cache.metadata)


@pytest.mark.parametrize(("url", "unasked"), KNOWN)
def test_how_long_it_may_be_sent_without_asking(naming: Naming, url: str, unasked: Optional[float]) -> None:
    name = storage_name(parse_absolute(url.encode()), naming)
    assert (None if name is None else name.unasked) == unasked


def test_a_manifest_by_its_digest_is_never_asked_about(naming: Naming) -> None:
    name = storage_name(parse_absolute(f"https://registry.example/v2/a/manifests/{DIGEST}".encode()), naming)
    assert name is not None and str(name.digest) == DIGEST and not name.volatile and not name.negotiated


def test_a_filter_that_finds_manifests_makes_no_other_objects_of_them(naming: Naming) -> None:
    filters = (re.compile("^/v2/.+/manifests/(?:sha256:(?P<sha256>[0-9a-f]{64})|[^/]+)$"),)
    for reference in ("latest", DIGEST):
        target = parse_absolute(f"https://registry.example/v2/a/manifests/{reference}".encode())
        assert storage_name(target, Naming(filters, Parameters(()))) == storage_name(target, naming)
