"""What the tests of TLS share."""

from __future__ import annotations

import pytest

from tls.authority import CertificateAuthority


@pytest.fixture(scope="session")
def authority() -> CertificateAuthority:
    """One with the kind of key that dduct makes for itself."""
    return CertificateAuthority.generate("dduct", 2048, 3650)
