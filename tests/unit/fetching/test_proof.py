"""What proves that an origin gives a client what is stored, and what does not."""

from __future__ import annotations

import base64
import hashlib
from typing import List, Tuple

import pytest

from fetching import proof
from fetching.proof import Verdict
from protocol import media_types
from protocol.headers import Headers
from protocol.http1 import ResponseHead

SAME, OTHER, UNKNOWN = Verdict.SAME, Verdict.OTHER, Verdict.UNKNOWN
BODY = b"12345"
HEX = hashlib.sha256(BODY).hexdigest()
B64 = base64.b64encode(hashlib.sha256(BODY).digest()).decode()
WRONG = base64.b64encode(b"x" * 32).decode()
MONDAY, TUESDAY = "Mon, 01 Jan 2024 00:00:00 GMT", "Tue, 02 Jan 2024 00:00:00 GMT"


def fields(lines: str) -> Headers:
    pairs = (line.partition(": ") for line in lines.split(" | ") if line)
    return Headers((name.encode(), value.encode()) for name, _, value in pairs)


VERDICTS: List[Tuple[str, str, int, Verdict]] = [
    # stored, answer, status
    ('ETag: "1"', "", 304, SAME),
    ('ETag: "1"', 'ETag: "1"', 304, SAME),
    ('ETag: "1"', 'ETag: "2"', 304, UNKNOWN),
    ('ETag: "1"', 'ETag: W/"1"', 304, UNKNOWN),
    (f'ETag: "1" | Last-Modified: {MONDAY}', f'ETag: "1" | Last-Modified: {TUESDAY}', 304, UNKNOWN),
    (f'ETag: "1" | Last-Modified: {MONDAY}', f"Last-Modified: {MONDAY}", 304, SAME),
    ('ETag: "1"', f"Docker-Content-Digest: sha256:{'0' * 64}", 304, UNKNOWN),
    ('ETag: W/"1"', 'ETag: W/"1"', 304, UNKNOWN),
    ("", "", 304, UNKNOWN),
    (f"Last-Modified: {MONDAY}", f"Last-Modified: {MONDAY}", 304, UNKNOWN),
    ('ETag: "1"', 'ETag: "1" | Content-Length: 5', 200, SAME),
    ('ETag: "1"', 'ETag: "1"', 200, SAME),
    ('ETag: "1"', 'ETag: "1" | Content-Length: 6', 200, UNKNOWN),
    ('ETag: "1"', 'ETag: "2" | Content-Length: 5', 200, OTHER),
    ('ETag: W/"1"', 'ETag: W/"1" | Content-Length: 5', 200, UNKNOWN),
    ('ETag: "1"', 'ETag: W/"1" | Content-Length: 5', 200, OTHER),
    ("Content-Type: a/b", "Content-Type: a/b | Content-Length: 5", 200, UNKNOWN),
    (f"Last-Modified: {MONDAY}", f"Last-Modified: {MONDAY} | Content-Length: 5", 200, UNKNOWN),
    (f"Last-Modified: {MONDAY}", f"Last-Modified: {TUESDAY} | Content-Length: 5", 200, OTHER),
    ("", f"Docker-Content-Digest: sha256:{HEX}", 200, SAME),
    ('ETag: "1"', f'ETag: "2" | Docker-Content-Digest: sha256:{HEX}', 200, SAME),
    ('ETag: "1"', f'ETag: "1" | Docker-Content-Digest: sha256:{"0" * 64}', 200, OTHER),
    ("", f"Repr-Digest: sha-256=:{B64}:", 200, SAME),
    ("", f"Repr-Digest: sha-512=:abc:, sha-256=:{B64}:", 200, SAME),
    ("", f"Repr-Digest: sha-256=:{WRONG}:", 200, OTHER),
    ("", f"Digest: SHA-256={B64}", 200, SAME),
    ("", f"x-amz-checksum-sha256: {B64}", 200, SAME),
    ("", f"x-amz-checksum-sha256: {B64}-3", 200, UNKNOWN),
    ("", f"X-Checksum-Sha256: {HEX}", 200, SAME),
    ("", f'ETag: "sha256:{HEX}"', 200, SAME),
    ("", f'ETag: "{HEX}"', 200, SAME),
    ("", f'ETag: W/"{HEX}"', 200, UNKNOWN),
    ("", f'ETag: "{"0" * 64}"', 200, UNKNOWN),
    ("", f"Docker-Content-Digest: sha256:{HEX} | Repr-Digest: sha-256=:{WRONG}:", 200, OTHER),
    ('ETag: "1"', 'ETag: "1"', 206, UNKNOWN),
    ('ETag: "1"', 'ETag: "1"', 401, UNKNOWN),
    ("", f"Docker-Content-Digest: sha256:{HEX}", 403, UNKNOWN),
]


@pytest.mark.parametrize(("stored", "answer", "status", "verdict"), VERDICTS)
def test_an_answer_proves_what_it_proves_and_no_more(stored: str, answer: str, status: int, verdict: Verdict) -> None:
    head = ResponseHead(status, b"", 1, fields(answer))
    assert proof.judge(head, fields(stored), len(BODY), {"sha256": HEX}) is verdict


@pytest.mark.parametrize(
    ("stored", "asked"),
    [
        ('ETag: "1"', [(b"If-None-Match", b'"1"')]),
        (f'ETag: "1" | Last-Modified: {MONDAY}', [(b"If-None-Match", b'"1"')]),
        ('ETag: W/"1"', []),
        (f"Last-Modified: {MONDAY}", []),
    ],
)
def test_only_a_strong_tag_is_asked_about(stored: str, asked: List[Tuple[bytes, bytes]]) -> None:
    assert proof.question(fields(stored)) == asked


HTML, JSON, PLAIN = b"text/html; charset=utf-8", b"application/json", b"text/plain"


@pytest.mark.parametrize(
    ("path", "kind", "contradicts"),
    [
        ("/x.zip", HTML, True),
        ("/x.zip", b"Application/XHTML+xml", True),
        ("/x.zip", JSON, True),
        ("/x.zip", b"application/problem+json", True),
        ("/x.tar.gz", HTML, True),
        ("/X.DEB", HTML, True),
        ("/x.deb", PLAIN, False),
        ("/x.deb", b"application/octet-stream", False),
        ("/x.tgz", b"application/x-gzip", False),
        ("/x.gem", None, False),
        ("/repodata.json.zst", JSON, False),
        ("/repodata.json.zst", HTML, True),
        ("/index.html.gz", HTML, False),
        ("/x.json", JSON, False),
        ("/x.whl.metadata", PLAIN, False),
        ("/simple/x/", HTML, False),
        ("/zip", HTML, False),
    ],
)
def test_an_html_page_is_no_proof_for_an_archive(path: str, kind: bytes, contradicts: bool) -> None:
    assert media_types.contradicts(path, False, kind) is contradicts


def test_a_digest_named_object_may_be_json_but_not_html() -> None:
    for path in ("/v2/x/blobs/sha256:1", "/v2/x/manifests/sha256:1", "/by-hash/SHA256/1"):
        assert media_types.contradicts(path, True, HTML)
        assert not media_types.contradicts(path, True, JSON)
