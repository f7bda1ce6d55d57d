"""What scanners think of our TLS: of the listener, and of the connections that are intercepted."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, Dict, Iterator, List

import pytest
from support.process import Process, write

HOST = "intercepted.test"
TIMEOUT = 400
# A private authority publishes no revocations, and its hosts are in no DNS that could name it.
OF_A_PRIVATE_AUTHORITY = {
    "cert_revocation",
    "DNS_CAArecord",
    "OCSP_stapling",
    "cert_caIssuers",
    "certificate_transparency",
}
# Of the scanner's own installation; and its client may hang up before the ticket it wants to try has come
# (TLS 1.3 sends it after the handshake), of which it says "connect problem".
OF_THE_SCANNER = {"engine_problem", "sessionresumption_ticket"}
# The intercepted host is not there, says dduct.
OF_THE_TEST = {"HTTP_status_code"}


def tool(*names: str) -> str:
    """A scanner's path; without it the test is skipped, or fails where DDUCT_REQUIRE_CLIENTS=1."""
    for name in names:
        found = shutil.which(name) or shutil.which(str(Path(".venv-tools/bin", name).absolute()))
        if found:
            return found
    reason = f"needs {names[0]}"
    if os.environ.get("DDUCT_REQUIRE_CLIENTS") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scan")


@pytest.fixture
def dduct(directory: Path) -> Iterator[Process]:
    # The seed's default gives our own certificate eight years, of which scanners do not think well.
    certs = {"server_dns_sans": [HOST], "server_ip_sans": ["127.0.0.1"], "days_from_now": 365}
    process = Process(write(directory, certs=certs))
    try:
        yield process
    finally:
        process.close()


@pytest.mark.parametrize("what", ["the listener", "an intercepted host"])
def test_testssl_finds_nothing_above_low(dduct: Process, directory: Path, tmp_path: Path, what: str) -> None:
    program = tool("testssl", "testssl.sh")
    _, tls = dduct.ports()
    target = [f"127.0.0.1:{tls}"]
    if what != "the listener":  # SNI chooses the same leaf there as CONNECT does
        target = ["--ip", "127.0.0.1", f"{HOST}:{tls}"]
    report = tmp_path / "report.json"
    ca = directory / "certs/ca.crt"
    command = [program, "--quiet", "--warnings", "off", "--color", "0", "--add-ca", str(ca), "--jsonfile", str(report)]
    done = subprocess.run(
        [*command, *target], capture_output=True, text=True, timeout=TIMEOUT, stdin=subprocess.DEVNULL
    )
    assert report.exists(), done.stdout + done.stderr
    findings: List[Dict[str, str]] = json.loads(report.read_text())
    assert len(findings) > 100, done.stdout
    expected = OF_A_PRIVATE_AUTHORITY | OF_THE_SCANNER | OF_THE_TEST
    serious = [
        f"{finding['severity']} {finding['id']}: {finding['finding']}"
        for finding in findings
        if finding["severity"] in ("MEDIUM", "HIGH", "CRITICAL", "FATAL", "WARN")
        and finding["id"].split(" ")[0] not in expected
    ]
    assert serious == []


@pytest.mark.parametrize("what", ["the listener", "an intercepted host"])
def test_sslyze_finds_nothing(dduct: Process, directory: Path, tmp_path: Path, what: str) -> None:
    program = tool("sslyze")
    tcp, tls = dduct.ports()
    target = [f"127.0.0.1:{tls}"]
    if what != "the listener":
        target = ["--https_tunnel", f"http://127.0.0.1:{tcp}", f"{HOST}:443"]
    report = tmp_path / "report.json"
    command = [program, "--json_out", str(report), "--certinfo_ca_file", str(directory / "certs/ca.crt")]
    done = subprocess.run([*command, *target], capture_output=True, text=True, timeout=TIMEOUT)
    assert report.exists(), done.stdout + done.stderr
    (server,) = json.loads(report.read_text())["server_scan_results"]
    assert server["scan_status"] == "COMPLETED", done.stdout
    scans = server["scan_result"]

    def result(name: str) -> Any:
        assert scans[name]["status"] == "COMPLETED", (name, scans[name])
        return scans[name]["result"]

    for old in ("ssl_2_0", "ssl_3_0", "tls_1_0", "tls_1_1"):
        assert result(f"{old}_cipher_suites")["accepted_cipher_suites"] == []
    for suites in (result("tls_1_2_cipher_suites"), result("tls_1_3_cipher_suites")):
        names = [suite["cipher_suite"]["name"] for suite in suites["accepted_cipher_suites"]]
        assert names and all("GCM" in name or "CHACHA20" in name for name in names)
    assert not result("heartbleed")["is_vulnerable_to_heartbleed"]
    assert not result("openssl_ccs_injection")["is_vulnerable_to_ccs_injection"]
    assert "NOT_VULNERABLE" in result("robot")["robot_result"]
    assert not result("session_renegotiation")["is_vulnerable_to_client_renegotiation_dos"]
    assert result("session_renegotiation")["supports_secure_renegotiation"]
    assert result("tls_fallback_scsv")["supports_fallback_scsv"]
    assert not result("tls_compression")["supports_compression"]
    for deployment in result("certificate_info")["certificate_deployments"]:
        trusted = [path for path in deployment["path_validation_results"] if path["was_validation_successful"]]
        assert [path["trust_store"]["path"] for path in trusted] == [str(directory / "certs/ca.crt")]
