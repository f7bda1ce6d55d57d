"""Secrets from files and helpers."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Callable

import pytest
from support.client import wait_until

from protocol.http1 import Target, parse_absolute
from upstream.secret_sources import Helper, Secret, SecretError, SecretFile

TARGET = parse_absolute(b"https://registry.lab:5000/v2/")
GIVEN = json.dumps({"ServerURL": "registry.lab", "Username": "bot", "Secret": "hunter2"})


def reason(source: Helper, target: Target = TARGET) -> str:
    with pytest.raises(SecretError) as caught:
        source.get(target)
    assert "hunter2" not in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("content", ["hunter2", "hunter2\n", "hunter2\r\n"])
def test_a_file_holds_one_secret(tmp_path: Path, content: str) -> None:
    path = tmp_path / "secret"
    path.write_bytes(content.encode())
    assert SecretFile(path, "bot").get(TARGET) == Secret("hunter2", "bot") == SecretFile(path, "bot").known(TARGET)
    assert SecretFile(path).get(TARGET) == Secret("hunter2")
    path.write_text("new")
    assert SecretFile(path).get(TARGET) == Secret("new")


def test_a_password_may_have_blanks_and_letters_that_a_token_has_not(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    for content in ("hunter 2", "hünter2"):
        path.write_text(content, encoding="utf-8")
        assert SecretFile(path, "bot").read().value == content
        with pytest.raises(SecretError):
            SecretFile(path).read()


@pytest.mark.parametrize("content", [b"", b"\n", b"a\nb", b"a\0", b"\xff", b"x" * 20_000])
def test_what_is_no_secret_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "secret"
    path.write_bytes(content)
    with pytest.raises(SecretError):
        SecretFile(path, "bot").read()
    assert SecretFile(path, "bot").known(TARGET) is None
    with pytest.raises(SecretError):
        SecretFile(tmp_path / "none").read()


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Helper]:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)

    def build(script: str, seconds: float = 20.0) -> Helper:
        path = tmp_path / "docker-credential-test"
        path.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/runs\n{script}\n')
        path.chmod(0o700)
        return Helper("test", seconds)

    return build


def test_a_helper_gets_the_host_and_is_asked_once_for_each(helper: Callable[..., Helper], tmp_path: Path) -> None:
    source = helper(f"cat >> {tmp_path}/hosts; echo >> {tmp_path}/hosts; echo '{GIVEN}'")
    assert source.known(TARGET) is None
    for url in (b"https://registry.lab:5000/a", b"https://registry.lab:5000/b", b"https://registry-1.docker.io/v2/"):
        assert source.get(parse_absolute(url)) == Secret("hunter2", "bot")
    assert source.known(TARGET) == Secret("hunter2", "bot")
    assert (tmp_path / "hosts").read_text().split() == ["registry.lab:5000", "https://index.docker.io/v1/"]
    assert set((tmp_path / "runs").read_text().split()) == {"get"}


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo hunter2; exit 1", "it ended with status 1"),
        ("echo hunter2", "its answer is not JSON"),
        ("printf '[1'; head -c 60000 /dev/zero | tr '\\0' '['", "its answer is not JSON"),
        ("echo '[]'", "its answer has no Username and Secret"),
        ('echo \'{"Username": "bot"}\'', "its answer has no Username and Secret"),
        ('echo \'{"Username": "<token>", "Secret": "hunter2"}\'', "an identity token, which dduct cannot use"),
        ('echo \'{"Username": "a:b", "Secret": "hunter2"}\'', "an impossible Username"),
        ('echo \'{"Username": "a", "Secret": ""}\'', "holds nothing"),
        ('echo \'{"Username": "a", "Secret": "x\\\\ny"}\'', "holds more than one line"),
        ("cat /dev/zero", "it answers more than 65536 bytes"),
        ("exec <&-; echo no", "its answer is not JSON"),
    ],
)
def test_a_helper_that_fails_is_one_line(helper: Callable[..., Helper], script: str, said: str) -> None:
    line = reason(helper(script))
    assert line.startswith("docker-credential-test: ") and said in line


def test_a_failure_of_a_helper_is_kept_for_a_moment(helper: Callable[..., Helper], tmp_path: Path) -> None:
    source = helper("exit 3")
    assert reason(source) == reason(source)
    assert (tmp_path / "runs").read_text() == "get\n"


@pytest.mark.parametrize("script", ["sleep 1000", "exec >&-; sleep 1000", "sleep 1000 & echo $! > child; exit 0"])
def test_a_helper_that_hangs_ends_with_all_that_it_has_started(
    helper: Callable[..., Helper], script: str, tmp_path: Path
) -> None:
    began = time.monotonic()
    assert "it has not answered in 0 s" in reason(helper(script, 0.3))
    assert time.monotonic() - began < 20.0
    if (tmp_path / "child").exists():
        child = Path("/proc") / (tmp_path / "child").read_text().strip() / "stat"
        wait_until(lambda: not child.exists() or child.read_text().split(")")[1].split()[0] == "Z")


def test_a_program_that_is_not_there_is_one_line() -> None:
    assert "it cannot be run: No such file" in reason(Helper("nobody-has-it"))
