"""Which repository a URL is about, and how long it is known who gets it."""

from __future__ import annotations

from typing import Optional

import pytest

from fetching.repositories import repository_of
from protocol.http1 import parse_absolute

DIGEST = "sha256:" + "0" * 64


@pytest.mark.parametrize(
    ("path", "repository"),
    [
        ("/v2/library/app/manifests/1", "library/app"),
        ("/v2/app/manifests/v1.0_x-y", "app"),
        ("/v2/a__b/c.d/e-f/manifests/" + DIGEST, "a__b/c.d/e-f"),
        ("/v2/library/app/blobs/" + DIGEST, "library/app"),
        ("/v2/libr%61ry/app/manifests/1", "library/app"),
        # What an origin may take for another repository
        ("/v2/secret/app/manifests/..%2f..%2f..%2fpublic%2fapp%2fmanifests%2f1", None),
        ("/v2/secret/app/manifests/%2e%2e", None),
        ("/v2/secret%2fapp/manifests/1", None),
        ("/v2/secret/../public/app/manifests/1", None),
        ("/v2/secret/./app/manifests/1", None),
        ("/v2/secret//app/manifests/1", None),
        ("/v2/secret/app;x/manifests/1", None),
        ("/v2/secret/app/manifests/1?ns=other.example", None),
        ("/v2/secret/app/blobs/" + DIGEST + "?token=secret", None),
        ("/v2/app/tags/list", None),
        ("/v1/app/manifests/1", None),
    ],
)
def test_a_repository_is_what_no_origin_takes_for_another(path: str, repository: Optional[str]) -> None:
    assert repository_of(parse_absolute(f"https://registry.example{path}".encode())) == repository
