"""TLS contexts of servers, and what OpenSSL does and `ssl` has no name for: order of suites, shared tickets, kTLS.

Where `ssl` cannot pass a wish on, OpenSSL is told directly, at the address that CPython keeps in each SSLContext. Where
that cannot be done (another Python, no ctypes), nothing changes: these are matters of speed.
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
# Where CPython is known to keep its SSL_CTX: in the first field of the object.
_LAYOUT_KNOWN = sys.implementation.name == "cpython" and (3, 9) <= sys.version_info < (3, 15)
_CPUINFO = Path("/proc/cpuinfo")
_SSL_CTRL_SET_SESS_CACHE_MODE, _SSL_SESS_CACHE_OFF = 44, 0
_SSL_CTRL_SET_TLSEXT_TICKET_KEYS = 59
_OP_ENABLE_KTLS = 1 << 3  # ssl has a name for it from 3.12 on
_TCP_ULP = 31  # linux/tcp.h
_ENOTSUPP = 524  # the kernel's own, and what older ones say for ENOTCONN

# --- Suites -------------------------------------------------------------------------------------


def prefer_aes_128(context: ssl.SSLContext) -> None:
    """Put AES-128-GCM before the other suites of TLS 1.3 that the context has, if that can be done.

    OpenSSL puts AES-256 first, which costs an eighth more per octet, and SHA-384, which has no instructions of its own,
    in every handshake. `SSLContext` can order TLS 1.2's suites; for these it learns `set_ciphersuites()` only in Python
    3.15. No suite is added: what the system's policy has taken out stays out. Without AES instructions nothing changes.
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


# --- Tickets ------------------------------------------------------------------------------------


def share_tickets(context: ssl.SSLContext, secret: bytes) -> None:
    """Have a session that one context began resumed by each other that was given the same secret, in any process.

    A ticket stands for all that its handshake found out about the client, a certificate included: contexts that ask for
    different things need different secrets. Without this each context makes up keys of its own (RFC 8446 §4.6.1).
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
    """Have every connection of a server shake hands in full: whoever resumes shows no certificate.

    Where OpenSSL cannot be told, TLS 1.2 without tickets still resumes in this context, for two hours at most.
    """
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET
    library = _library()
    if library is not None:
        library.SSL_CTX_ctrl(_address(context), _SSL_CTRL_SET_SESS_CACHE_MODE, _SSL_SESS_CACHE_OFF, None)


# --- TLS by the kernel --------------------------------------------------------------------------


def let_kernel_encrypt(context: ssl.SSLContext) -> None:
    """Have connections encrypted by the kernel where it can; whether one is, `Stream.takes_files` finds out."""
    if ssl.OPENSSL_VERSION_INFO >= (3,) and _kernel_knows_tls():
        context.options |= _OP_ENABLE_KTLS


def _kernel_knows_tls() -> bool:
    """Whether asking is worth while: each connection would do so twice, and for root the kernel looks for a module."""
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.IPPROTO_TCP, _TCP_ULP, b"tls")
    except OSError as error:
        return error.errno in (errno.ENOTCONN, _ENOTSUPP)  # it has looked at the connection, of which there is none
    return True


# --- The library --------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _library() -> Optional[ctypes.CDLL]:
    """The very library that the ssl module uses; None where it cannot be had."""
    spec = importlib.util.find_spec("_ssl")
    if not _LAYOUT_KNOWN or spec is None or not spec.origin or _SHARED_LIBRARY not in spec.origin:
        return None  # a library that is part of the interpreter shows no such names, or another library's
    try:
        import ctypes  # here, for some systems have none, and some policies do not let it in

        library = ctypes.CDLL(spec.origin)
        library.SSL_CTX_set_ciphersuites.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
        library.SSL_CTX_ctrl.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_long, ctypes.c_char_p]
        library.SSL_CTX_ctrl.restype = ctypes.c_long
    except (ImportError, OSError, MemoryError, AttributeError):
        return None
    return library


def _address(context: ssl.SSLContext) -> Optional[int]:
    """Of the SSL_CTX in it."""
    import ctypes

    return ctypes.c_void_p.from_address(id(context) + object.__basicsize__).value


# --- Contexts -----------------------------------------------------------------------------------

_OP_PRIORITIZE_CHACHA = 1 << 21  # for which ssl has no name


def server_context(pem: bytes) -> ssl.SSLContext:
    """A TLS server with the certificate chain and key in `pem`: TLS 1.2 and 1.3, HTTP/1.1 only."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    # Our order counts, but for clients that put ChaCha20 first: their processors do not know AES.
    context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE | _OP_PRIORITIZE_CHACHA
    context.set_ciphers("ECDHE+AES128+AESGCM:ECDHE+AESGCM:ECDHE+CHACHA20")
    prefer_aes_128(context)
    context.set_alpn_protocols(["http/1.1"])
    context.num_tickets = 1  # two cost a quarter of a handshake, and whoever resumes gets another
    # load_cert_chain() takes paths only; a memfd has one, and its octets never reach a disk.
    descriptor = os.memfd_create("dduct", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(pem)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
    return context
