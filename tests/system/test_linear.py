"""No request head costs a dduct more than time linear in its length."""

from __future__ import annotations

import time

import pytest
from support.costly import COSTLY_VALUES
from support.origin import Asked, Connection
from support.running import HOST, RunningDduct

FIELDS = (
    b"accept accept-encoding accept-language age authorization cache-control connection content-length content-range "
    b"content-type cookie date etag expect expires forwarded host if-match if-modified-since if-none-match if-range "
    b"if-unmodified-since keep-alive last-modified location max-forwards pragma proxy-authorization range te trailer "
    b"transfer-encoding upgrade user-agent vary via warning www-authenticate x-anything"
).split()


@pytest.mark.one_process
def test_no_head_freezes_a_worker(dduct: RunningDduct) -> None:
    """Whatever it is answered with. Here the clients and the origin count, too."""

    def answer(_: Asked, connection: Connection) -> None:
        connection.respond(200, [("Cache-Control", "max-age=600"), ("Vary", "X-Anything")], b"stored")

    url = f"http://{HOST}:{dduct.origin(answer, tls=False).port}/x.deb"
    with dduct.client() as client:
        assert client.get(url, "x", "X-Anything: a").status == 200
    for number, field in enumerate(FIELDS):
        for value in COSTLY_VALUES[number % 5 :: 5]:
            head = b"GET %s HTTP/1.1\r\nHost: x\r\n%s: %s\r\n\r\n" % (url.encode(), field, value)
            assert min(_spent_on(dduct, head) for _ in range(2)) < 0.5, (field, value[:20])


def _spent_on(dduct: RunningDduct, head: bytes) -> float:
    with dduct.client() as client:
        started = time.process_time()
        client.send(head)
        try:
            client.read()
        except OSError:
            pass  # it may as well hang up
        return time.process_time() - started
