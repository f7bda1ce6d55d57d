"""TLS contexts of servers, and OpenSSL settings that `ssl` does not offer: order of suites, shared tickets, kTLS.

ctypes calls OpenSSL with the address of the SSL_CTX that CPython keeps in each SSLContext. Where that fails (another
Python, no ctypes), the settings stay unchanged: except in `resume_nothing`, they only affect speed.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import os
import socket
import ssl
import sys
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, List, Optional

if TYPE_CHECKING:
    import ctypes

_FAST = "TLS_AES_128_GCM_SHA256"
_SHARED_LIBRARY = ".so"
# CPython versions known to keep the SSL_CTX in the object's first field.
_LAYOUT_KNOWN = sys.implementation.name == "cpython" and (3, 9) <= sys.version_info < (3, 15)
_CPUINFO = Path("/proc/cpuinfo")
_SSL_CTRL_SET_SESS_CACHE_MODE, _SSL_SESS_CACHE_OFF = 44, 0
_SSL_CTRL_SET_TLSEXT_TICKET_KEYS = 59
_OP_ENABLE_KTLS = 1 << 3  # ssl names it since 3.12
_OP_IGNORE_UNEXPECTED_EOF = 1 << 7  # missing in ssl before Python 3.10
_TCP_ULP = 31  # linux/tcp.h
_ENOTSUPP = 524  # kernel-internal; older kernels return it for ENOTCONN

# --- Suites -------------------------------------------------------------------------------------


def prefer_aes_128(context: ssl.SSLContext) -> None:
    """Put AES-128-GCM first among the context's suites for TLS 1.3, if that is possible.

    OpenSSL puts AES-256 first: an eighth more cost per byte, and SHA-384, which has no instructions of its own, in
    every handshake. `SSLContext` can order TLS 1.2's suites; `set_ciphersuites()` for TLS 1.3 exists from Python 3.15
    on. No suite is added: suites that the system's policy removed stay out. Without AES instructions nothing changes.
    """
    names = suites(context)
    if _FAST not in names or not has_aes(_CPUINFO):
        return
    wanted = ":".join([_FAST, *(name for name in names if name != _FAST)])
    if hasattr(context, "set_ciphersuites"):
        context.set_ciphersuites(wanted)
        return
    library = _library()
    if library is not None:
        library.SSL_CTX_set_ciphersuites(_address(context), wanted.encode())


def suites(context: ssl.SSLContext) -> List[str]:
    """The names of a context's suites for TLS 1.3, in order."""
    return [str(suite["name"]) for suite in context.get_ciphers() if suite["protocol"] == "TLSv1.3"]


@lru_cache(maxsize=1)
def has_aes(cpuinfo: Path) -> bool:
    """Whether the processor has instructions for AES, from Linux (`flags` on x86, `Features` on ARM)."""
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        return False
    return any("aes" in line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features")))


# --- Tickets ------------------------------------------------------------------------------------


def share_tickets(context: ssl.SSLContext, secret: bytes) -> None:
    """Let contexts with the same secret resume each other's sessions, in any process.

    A ticket carries all facts about the client from its handshake, including a certificate: contexts that ask for
    different things need different secrets. By default each context has random ticket keys (RFC 8446 §4.6.1).
    """
    library = _library()
    if library is None:
        return
    address = _address(context)
    size = library.SSL_CTX_ctrl(address, _SSL_CTRL_SET_TLSEXT_TICKET_KEYS, 0, None)
    if size > 0:
        keys = hashlib.shake_256(secret).digest(size)
        library.SSL_CTX_ctrl(address, _SSL_CTRL_SET_TLSEXT_TICKET_KEYS, size, keys)


def resume_nothing(context: ssl.SSLContext) -> None:
    """Require a full handshake for every connection: a client that resumes shows no certificate.

    Without access to OpenSSL, TLS 1.2 without tickets still resumes in this context, for two hours at most.
    """
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET
    library = _library()
    if library is not None:
        library.SSL_CTX_ctrl(_address(context), _SSL_CTRL_SET_SESS_CACHE_MODE, _SSL_SESS_CACHE_OFF, None)


# --- TLS by the kernel --------------------------------------------------------------------------


def let_kernel_encrypt(context: ssl.SSLContext) -> None:
    """Let the kernel encrypt connections if it can; `Stream.takes_files` says whether it does."""
    if ssl.OPENSSL_VERSION_INFO >= (3,) and _kernel_knows_tls():
        context.options |= _OP_ENABLE_KTLS


def _kernel_knows_tls() -> bool:
    """Whether the kernel has TLS: else each connection asks twice, and for root the kernel looks for a module."""
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.IPPROTO_TCP, _TCP_ULP, b"tls")
    except OSError as error:
        return error.errno in (errno.ENOTCONN, _ENOTSUPP)  # TLS is there, and found no connection
    return True


# --- The end of a connection --------------------------------------------------------------------


def require_close_notify(context: ssl.SSLContext) -> ssl.SSLContext:
    """Make a context report the end of a connection without close_notify, and return the context.

    Python 3.9 makes OpenSSL 3 treat it as a regular end (SSL_OP_IGNORE_UNEXPECTED_EOF, bpo-43794), so that a truncated
    body seems complete. OpenSSL 1.1 has no such option, and always reports it.
    """
    context.options &= ~_OP_IGNORE_UNEXPECTED_EOF
    return context


# --- The library --------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _library() -> Optional[ctypes.CDLL]:
    """The same library that the ssl module uses; None if it is not accessible."""
    spec = importlib.util.find_spec("_ssl")
    if not _LAYOUT_KNOWN or spec is None or not spec.origin or _SHARED_LIBRARY not in spec.origin:
        return None  # an interpreter with OpenSSL built in exports no such names, or another library's
    try:
        import ctypes  # here: some systems lack it, and some policies forbid it

        library = ctypes.CDLL(spec.origin)
        library.SSL_CTX_set_ciphersuites.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
        library.SSL_CTX_ctrl.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_long, ctypes.c_char_p]
        library.SSL_CTX_ctrl.restype = ctypes.c_long
    except (ImportError, OSError, MemoryError, AttributeError):
        return None
    return library


def _address(context: ssl.SSLContext) -> Optional[int]:
    """The address of its SSL_CTX."""
    import ctypes

    return ctypes.c_void_p.from_address(id(context) + object.__basicsize__).value


# --- Contexts -----------------------------------------------------------------------------------

_OP_PRIORITIZE_CHACHA = 1 << 21  # ssl has no name for it


def server_context(pem: bytes) -> ssl.SSLContext:
    """A TLS server with the certificate chain and key in `pem`: TLS 1.2 and 1.3, HTTP/1.1 only."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    # Our order counts, except for clients that put ChaCha20 first: their processors lack AES.
    context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE | _OP_PRIORITIZE_CHACHA
    context.set_ciphers("ECDHE+AES128+AESGCM:ECDHE+AESGCM:ECDHE+CHACHA20")
    prefer_aes_128(context)
    context.set_alpn_protocols(["http/1.1"])
    context.num_tickets = 1  # two cost a quarter of a handshake, and each resumption sends another
    # load_cert_chain() takes paths only; a memfd has one, and its bytes never reach a disk.
    descriptor = os.memfd_create("dduct", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(pem)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
    return context
