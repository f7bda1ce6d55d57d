"""What is shown of URLs and paths, and what of a query may be in a file name."""

from __future__ import annotations

import os
import time

import pytest

from monitoring.redaction import looks_secret, nameable, nameable_path, reason_of, shown, without_queries

SECRET = [
    *(
        "access_token=1",
        "access%5Ftoken=1",
        "accessToken=1",
        "ACCESS-TOKEN=1",
        "x_api_key=1",
        "apikey=1",
    ),
    *(
        "api.key=1",
        "key=1",
        "sshkey=1",
        "secret=1",
        "client_secret=1",
        "password=1",
        "passwd=1",
        "PWD=1",
    ),
    *(
        "pass=1",
        "auth=1",
        "Authorization=1",
        "oauth_verifier=1",
        "sig=1",
        "signature=1",
    ),
    *(
        "X-Amz-Credential=a",
        "session=1",
        "PHPSESSIONID=1",
        "sid=1",
        "jwt=1",
        "code=1",
        "auth%5Btoken%5D=1",
    ),
    *(
        "private_token=1",
        "deploy-token=1",
        "ticket=1",
        "otp=1",
        "user=u",
    ),
    *(
        "v=550e8400-e29b-41d4-a716-446655440000",
        "v=ghp_16C7e42F292c6912E7710c838347Ae178B4a",
    ),
    *(
        "v=eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
        "v=3f786850e387550fdaba836ed1bd5b6b",
    ),
    *(
        "v=98765432109876543210",
        "v=QWxhZGRpbjpPcGVuU2VzYW1lQWxh",
        "u=https%3A%2F%2Fh%2Fx%3Ftoken%3D1",
    ),
    *("q={%22password%22:%221%22}",),
]
HARMLESS = [
    *(
        "v=1.2.3",
        "ref=main",
        "arch=amd64",
        "page=2",
        "sort=asc",
        "author=me",
        "authority=x",
        "monk=y",
    ),
    *(
        "keyword=z",
        "versionId=3",
        "name=x.tar.gz",
        "b&c",
    ),
    *(
        "file=ubuntu-22.04-minimal-cloudimg-amd64-with-kernel.img",
        "path=pool/main/libreoffice-common_7.4",
    ),
    *(
        "date=2026-01-01T12:00:00",
        "dist=bookworm-backports-updates-security",
    ),
    *(
        "platform=manylinux_2_17_x86_64.manylinux2014_x86_64",
        "generation=1700000000000000",
        "a=",
        "=",
    ),
    *(
        "service=registry",
        "x=HTTPServer",
        "response-content-type=application/octet-stream",
    ),
]


@pytest.mark.parametrize("parameter", SECRET)
def test_no_file_name_contains_a_secret(parameter: str) -> None:
    name, _, value = parameter.partition("=")
    assert looks_secret(name, value)
    found = nameable(parameter)
    assert found.startswith(f"{name}=~") and len(found) == len(name) + 34
    assert found == nameable(parameter) != nameable(parameter + "1")


@pytest.mark.parametrize("parameter", HARMLESS)
def test_names_without_secrets_stay_unchanged(parameter: str) -> None:
    assert nameable(parameter) == parameter


def test_a_parameter_name_that_is_a_secret_is_redacted_too() -> None:
    assert nameable("3f786850e387550fdaba836ed1bd5b6b").startswith("~")
    assert nameable("3f786850e387550fdaba836ed1bd5b6b=1").startswith("~")
    assert nameable("x" * 100 + "=1").startswith("~")


def test_path_parameters_are_redacted_like_queries() -> None:
    assert nameable_path("/a;v=1/x.zip") == "/a;v=1/x.zip"
    found = nameable_path("/a;jsessionid=HUNTER;v=1/x.zip;token=HUNTER")
    assert "HUNTER" not in found and ";v=1/x.zip;token=~" in found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/files/https/h/x.zip?token=HUNTER.dduct", "/files/https/h/x.zip"),
        ("https://h/x.zip?v=1", "https://h/x.zip"),
        ("https://user:HUNTER@h:8/x.zip", "https://h:8/x.zip"),
        ("https://h/x.zip;jsessionid=HUNTER;v=1", "https://h/x.zip;jsessionid=…;v=1"),
        ("https://h/x.zip%3ftoken=HUNTER", "https://h/x.zip"),
        ("/x\n[evil] line\x1b", "/x?[evil] line?"),
    ],
)
def test_secrets_in_a_text_are_redacted(text: str, expected: str) -> None:
    assert shown(text) == expected


def test_error_texts_contain_no_file_name() -> None:
    try:
        os.stat("/no/such/x.zip?token=HUNTER")
    except OSError as error:
        assert reason_of(error) == "No such file or directory"
        assert "HUNTER" not in without_queries(str(error)) and "x.zip" in without_queries(str(error))
    assert str(reason_of(ValueError("x"))) == "x"
    assert reason_of(OSError()) == "OSError"


@pytest.mark.parametrize("piece", ["a1", "//a", ";a=", "Aa", "a=", "?", "%3f", "token=", "-_", "a" * 63 + "="])
def test_redaction_takes_linear_time(piece: str) -> None:
    def seconds(size: int) -> float:
        text = (piece * size)[:size]
        began = time.process_time()
        for work in (shown, nameable, nameable_path, without_queries):
            work(text)
        return time.process_time() - began

    assert min(seconds(64_000) for _ in range(3)) < 20 * min(seconds(8_000) for _ in range(3)) + 0.05
