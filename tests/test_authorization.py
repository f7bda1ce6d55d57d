"""Who may have what another client has brought: what brought it, who asks, and what the origin answers."""

from __future__ import annotations

import hashlib
import os

import pytest
from support.household import House
from support.origin import Asked, Connection

BODY = os.urandom(3000)


# --- what restricts an object -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "field", ["Authorization", "api_key", "X-Session-Id", "X-Access", "DPoP", "npm-otp", "X-Amz-Security-Token"]
)
def test_a_field_that_is_not_known_to_be_harmless_restricts_what_it_brings(house: House, field: str) -> None:
    def handler(asked: Asked, connection: Connection) -> None:
        known = asked.get(field) == "s3cret"
        connection.respond(200 if known else 401, [("ETag", '"1"')], BODY if known else b"who are you?")

    origin = house.origin(handler)
    assert house.fetch(origin, "/x.zip", f"{field}: s3cret").body == BODY
    for fields in ([], [f"{field}: guess"], ["Accept: */*", "X-Request-Id: 1"]):
        assert house.fetch(origin, "/x.zip", *fields).status == 401
    assert house.fetch(origin, "/x.zip", f"{field}: s3cret").body == BODY


def test_what_clients_send_beside_credentials_restricts_nothing(house: House) -> None:
    def handler(asked: Asked, connection: Connection) -> None:
        connection.respond(200, [], BODY)

    origin = house.origin(handler)
    tracing = ["traceparent: 00-1-1-00", "X-Request-Id: 7", "npm-session: 1", "Sec-Fetch-Mode: cors", "DNT: 1"]
    assert house.fetch(origin, "/x.zip", *tracing).body == BODY
    assert house.fetch(origin, "/x.zip", "pacote-req-type: tarball").body == BODY
    assert len(origin.requests) == 1


def test_the_configuration_knows_more_harmless_fields(build_house: object) -> None:
    assert callable(build_house)
    house = build_house(harmless_fields=("X-Build-*",))

    def handler(asked: Asked, connection: Connection) -> None:
        connection.respond(200, [], BODY)

    origin = house.origin(handler)
    for fields in (["X-Build-Id: 1"], ["x_build_id: 2"], []):
        assert house.fetch(origin, "/x.zip", *fields).body == BODY
    assert len(origin.requests) == 1


@pytest.mark.parametrize("field", ["X_Forwarded_Host", "X_Original_Url", "x-original-uri", "X_HTTP_Method_Override"])
def test_what_one_client_says_of_host_or_url_is_in_nobody_elses_answer(house: House, field: str) -> None:
    def handler(asked: Asked, connection: Connection) -> None:
        connection.respond(200, [], (asked.get(field) or "nothing").encode())

    origin = house.origin(handler)
    for fields in ([f"{field}: evil"], []):
        assert house.fetch(origin, "/x.zip", *fields).body == b"nothing"
    assert len(origin.requests) == 1
    assert house.fetch(origin, "/page", f"{field}: mine").body == b"mine"


def test_a_secret_in_the_query_restricts_what_a_digest_shares(house: House) -> None:
    """It is part of the name; but octets that a digest names are shared by all names."""
    path = f"/v2/x/blobs/sha256:{hashlib.sha256(BODY).hexdigest()}"

    def handler(asked: Asked, connection: Connection) -> None:
        known = asked.target == path + "?api_key=good"
        connection.respond(200 if known else 403, [("ETag", '"1"')], BODY if known else b"no key")

    def evil(asked: Asked, connection: Connection) -> None:
        connection.respond(200, [], b"!" * len(BODY))

    origin, other = house.origin(handler), house.origin(evil)
    assert house.fetch(origin, path + "?api_key=good").body == BODY
    assert house.fetch(other, path).body == b"!" * len(BODY)
    for query in ("", "?api_key=bad", "?apiKey=good"):
        assert house.fetch(origin, path + query).status == 403
    assert house.fetch(origin, path + "?api_key=good").body == BODY


def test_what_may_be_a_credential_stays_behind_at_another_host(house: House) -> None:
    def handler(asked: Asked, connection: Connection) -> None:
        if asked.target == "/x.zip":
            connection.respond(302, [("Location", f"https://127.0.0.1:{store.port}/y.zip")])
        else:
            connection.respond(200, [], BODY)

    origin, store = house.origin(handler), house.origin(handler)
    assert house.fetch(origin, "/x.zip", "X-Session-Id: 1", "traceparent: 2").body == BODY
    assert origin.requests[0].get("x-session-id") == "1"
    assert (store.requests[0].get("x-session-id"), store.requests[0].get("traceparent")) == (None, "2")
