"""The order of TLS 1.3's cipher suites: AES-128-GCM first, where the processor knows AES.

OpenSSL puts AES-256 first, which costs an eighth more per octet, and SHA-384, which has no instructions of its own, in
every handshake. `SSLContext` can order TLS 1.2's suites; for these it learns `set_ciphersuites()` only in Python 3.15.
"""

from __future__ import annotations

import importlib.util
import ssl
import sys
from functools import lru_cache
from pathlib import Path
from typing import Callable, List, Optional

_FAST = "TLS_AES_128_GCM_SHA256"
_SHARED_LIBRARY = ".so"
# Where CPython is known to keep its SSL_CTX: in the first field of the object.
_LAYOUT_KNOWN = sys.implementation.name == "cpython" and (3, 9) <= sys.version_info < (3, 15)
_CPUINFO = Path("/proc/cpuinfo")


def prefer_aes_128(context: ssl.SSLContext) -> None:
    """Put AES-128-GCM before the other suites of TLS 1.3 that the context has, if that can be done.

    No suite is added: what the system's policy has taken out stays out. Without AES instructions nothing changes.
    """
    names = suites(context)
    if _FAST not in names or not has_aes(_CPUINFO):
        return
    wanted = ":".join([_FAST, *(name for name in names if name != _FAST)])
    if hasattr(context, "set_ciphersuites"):
        context.set_ciphersuites(wanted)
        return
    function = _set_ciphersuites()
    if function is not None:
        function(context, wanted.encode())


def suites(context: ssl.SSLContext) -> List[str]:
    """The names of its suites for TLS 1.3, in their order."""
    return [str(suite["name"]) for suite in context.get_ciphers() if suite["protocol"] == "TLSv1.3"]


@lru_cache(maxsize=1)
def has_aes(cpuinfo: Path) -> bool:
    """Whether the processor has instructions for AES, as Linux tells (`flags` on x86, `Features` on ARM)."""
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        return False
    return any("aes" in line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features")))


@lru_cache(maxsize=1)
def _set_ciphersuites() -> Optional[Callable[[ssl.SSLContext, bytes], object]]:
    """SSL_CTX_set_ciphersuites of the very library that the ssl module uses; None where it cannot be had."""
    spec = importlib.util.find_spec("_ssl")
    if not _LAYOUT_KNOWN or spec is None or not spec.origin or _SHARED_LIBRARY not in spec.origin:
        return None  # a library that is part of the interpreter shows no such names, or another library's
    try:
        import ctypes  # here, for some systems have none, and some policies do not let it in

        function = ctypes.CDLL(spec.origin).SSL_CTX_set_ciphersuites
    except (ImportError, OSError, MemoryError, AttributeError):
        return None
    function.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    function.restype = ctypes.c_int
    field = ctypes.c_void_p
    return lambda context, names: function(field.from_address(id(context) + object.__basicsize__), names)
