"""Real clients against real servers, with dduct in between."""

from __future__ import annotations

from pathlib import Path
from typing import Iterator

import pytest

from clients.workshop import Workshop
from tls.authority import CertificateAuthority


@pytest.fixture
def workshop(tmp_path: Path, origin_authority: CertificateAuthority, certificates: Path) -> Iterator[Workshop]:
    """Servers and a dduct, as processes."""
    with Workshop(tmp_path, origin_authority, certificates) as workshop:
        yield workshop
