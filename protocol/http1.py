"""HTTP/1.1 messages as bytes: heads, framing, targets.

Rules of this module:

* Pure. It never sees a socket, a file or a clock; values in, values out.
* Bytes inside. Only a `Target` is text, because filters and file names are made from it.
* Strict. A message that two readers could frame differently is refused, never repaired (RFC 9112 §11.1 and §11.2:
  response splitting and request smuggling). Blanks that many origins send, and that no reader misunderstands, are
  removed from responses; in requests they are refused.
* Field lines keep their order, their case and their repeats.
"""

from __future__ import annotations

import enum
import ipaddress
import re
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from typing import Iterable, List, Optional, Tuple, Union
from urllib.parse import urljoin

from protocol.headers import Field, Headers, canonical

REQUEST_LINE_LIMIT = 16 * 1024
HEAD_LIMIT = 64 * 1024
FIELD_LIMIT = 200
CHUNK_LINE_LIMIT = 4 * 1024


class ProtocolError(Exception):
    """A peer's message is malformed or ambiguous; `status` is the status code to answer with."""

    def __init__(self, reason: str, status: int = 400) -> None:
        super().__init__(reason)
        self.status = status


class Sender(enum.Enum):
    """The sender of a message: clients may try to smuggle a request past dduct, origins are only sloppy."""

    CLIENT = "client"
    ORIGIN = "origin"


# --- fields -------------------------------------------------------------------------------------

_TOKEN_BYTES = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
# All bytes but those that RFC 9110 §5.5 forbids in a field value, and CR and LF.
_ALLOWED = bytes([0x09, *range(0x20, 0x7F), *range(0x80, 0x100)])

# --- heads --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RequestHead:
    """A request line and its fields; `target` as received, `version` is the minor version of HTTP/1."""

    method: bytes
    target: bytes
    version: int
    headers: Headers

    @property
    def persistent(self) -> bool:
        """Whether the connection may carry another request (RFC 9112 §9.3; a proxy keeps none open for 1.0)."""
        return self.version >= 1 and b"close" not in self.headers.tokens(b"connection")


@dataclass(frozen=True)
class ResponseHead:
    """A status line and its fields."""

    status: int
    reason: bytes
    version: int
    headers: Headers

    @property
    def persistent(self) -> bool:
        """Whether the origin keeps its connection open (RFC 9112 §9.3)."""
        options = self.headers.tokens(b"connection")
        if b"close" in options:
            return False
        return self.version >= 1 or b"keep-alive" in options

    def serialise(self, fields: Iterable[Field]) -> bytes:
        """This head with other fields, ready to be sent."""
        return serialise_response(self.status, self.reason, fields)

    @property
    def interim(self) -> bool:
        """Whether the final response is still to come; 101 is final (RFC 9110 §15.2)."""
        return 100 <= self.status < 200 and self.status != 101


_REQUEST_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+) ([\x21-\x7e\x80-\xff]+) HTTP/([0-9])\.([0-9])")
_STATUS_LINE = re.compile(rb"HTTP/1\.([0-9]) ([1-9][0-9][0-9])(?: ([\t\x20-\x7e\x80-\xff]*))?")


def head_end(buffer: Union[bytes, bytearray], start: int = 0) -> int:
    """The end of the head at the start of `buffer`, or -1; searches from `start`.

    A head that ends with bare LFs counts as ended, too: the parser then refuses it at once, and the reader does not
    wait for a CRLF that never comes.
    """
    start = start - 2 if start > 2 else 0
    at = buffer.find(b"\n\r\n", start)
    bare = buffer.find(b"\n\n", start, at + 1 if at >= 0 else len(buffer))
    if bare >= 0:
        return bare + 2
    return at + 3 if at >= 0 else -1


def parse_request(block: bytes) -> RequestHead:
    """Parse one request head, from its first byte through the empty line (RFC 9112 §2 to §5).

    Raises ProtocolError: 400 malformed, 414 and 431 over-long, 505 another major version.
    """
    line, fields = _split_head(block)
    if len(line) > REQUEST_LINE_LIMIT:
        raise ProtocolError("request line is longer than 16 KiB", 414)
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        raise ProtocolError("malformed request line")
    method, target, major, minor = match.groups()
    if major != b"1":
        raise ProtocolError("only HTTP/1.0 and HTTP/1.1 are spoken here", 505)
    headers = _parse_fields(fields, Sender.CLIENT)
    # RFC 9112 §3.2. Many simple clients (such as sslyze) send CONNECT without Host, and its target is unambiguous.
    if minor != b"0" and b"host" not in headers and method != b"CONNECT":
        raise ProtocolError("HTTP/1.1 request without Host")
    if len(headers.get_all(b"host")) > 1:
        raise ProtocolError("more than one Host field")
    return RequestHead(method, target, int(minor), headers)


def parse_response(block: bytes) -> ResponseHead:
    """Parse one response head through its empty line; raises ProtocolError(502) when malformed."""
    try:
        line, fields = _split_head(block)
        match = _STATUS_LINE.fullmatch(line)
        if match is None:
            raise ProtocolError("malformed status line")
        minor, status, reason = match.groups()
        return ResponseHead(int(status), reason or b"", int(minor), _parse_fields(fields, Sender.ORIGIN))
    except ProtocolError as error:
        raise bad_response_head(error) from None


def bad_response_head(error: ProtocolError) -> ProtocolError:
    """That a response's head is malformed, or does not end."""
    return ProtocolError(f"origin sent a bad response head: {error}", 502)


def _split_head(block: bytes) -> Tuple[bytes, List[bytes]]:
    if len(block) > HEAD_LIMIT:
        raise ProtocolError("head is longer than 64 KiB", 431)
    if not _has_allowed_bytes(block):
        raise ProtocolError("control character, bare CR or bare LF in the head")
    if not block.endswith(b"\r\n\r\n"):
        raise ProtocolError("head does not end with an empty line")
    lines = block[:-4].split(b"\r\n")
    if len(lines) > FIELD_LIMIT + 1:
        raise ProtocolError("more than 200 fields", 431)
    return lines[0], lines[1:]


def _has_allowed_bytes(block: bytes) -> bool:
    """Whether a head has no forbidden byte, and each CR and LF is part of a CRLF."""
    # A regular expression takes ten times as long: it looks at the bytes one by one.
    ends = block.count(b"\r\n")
    return block.translate(None, _ALLOWED) == b"\r\n" * ends


def _parse_fields(lines: List[bytes], sender: Sender) -> Headers:
    fields: List[Field] = []
    for line in lines:
        name, colon, value = line.partition(b":")
        if sender is Sender.ORIGIN:
            name = name.rstrip(b" \t")  # RFC 9112 §5.1: a proxy removes white space before the colon from a response
        # Refuses obs-fold, white space before the colon and empty names at once (RFC 9112 §5.1, §5.2).
        if not colon or not name or name.translate(None, _TOKEN_BYTES):
            raise ProtocolError("malformed field line")
        fields.append((name, value.strip(b" \t")))
    return _with_one_length(Headers(fields))


def _with_one_length(headers: Headers) -> Headers:
    """Merge equal Content-Lengths into one (RFC 9110 §8.6), so that no later reader has to; keep others unchanged."""
    value = headers.get(b"content-length")
    if value is None or b"," not in value:
        return headers
    members = {member.strip(b" \t") for member in value.split(b",")}
    if len(members) != 1 or _DIGITS.fullmatch(min(members)) is None:
        return headers
    return Headers([*headers.without([b"content-length"]), (b"Content-Length", min(members))])


def serialise_response(status: int, reason: bytes, fields: Iterable[Field]) -> bytes:
    """A response head ready to be sent; always HTTP/1.1, for clients of any version (RFC 9110 §2.5)."""
    return b"HTTP/1.1 %d %s\r\n%s\r\n" % (status, reason or reason_phrase(status), field_lines(fields))


def field_lines(fields: Iterable[Field]) -> bytes:
    """Fields as the lines of a head, each with its CRLF."""
    return b"".join([b"%s: %s\r\n" % (canonical(name), value) for name, value in fields])


@lru_cache(maxsize=1024)
def reason_phrase(status: int) -> bytes:
    """The registered phrase of a status code, or an empty one for an unregistered code."""
    try:
        return HTTPStatus(status).phrase.encode()
    except ValueError:
        return b""


# --- framing ------------------------------------------------------------------------------------


class Framing(enum.Enum):
    """How the end of a message body is determined."""

    NONE = "no body"
    LENGTH = "Content-Length"
    CHUNKED = "chunked"
    CLOSE = "until close"


@dataclass(frozen=True)
class BodyFraming:
    """How a message body is framed; `length` in bytes where Content-Length states it."""

    kind: Framing
    length: Optional[int] = None


NO_BODY = BodyFraming(Framing.NONE)
CHUNKED = BodyFraming(Framing.CHUNKED)
UNTIL_CLOSE = BodyFraming(Framing.CLOSE)

_DIGITS = re.compile(rb"[0-9]{1,18}")
_WITHOUT_BODY = (b"GET", b"HEAD", b"CONNECT", b"TRACE")  # RFC 9110 §9.3.1, §9.3.2, §9.3.6, §9.3.8


def request_framing(head: RequestHead) -> BodyFraming:
    """RFC 9112 §6.3 for requests; raises ProtocolError (400, 501) where two readers could differ."""
    length = _content_length(head.headers)
    if b"transfer-encoding" not in head.headers:
        # Some clients send Content-Length with every request. Where a body has no meaning, a length of 0 means no body.
        none = length is None or (length == 0 and head.method in _WITHOUT_BODY)
        return NO_BODY if none else BodyFraming(Framing.LENGTH, length)
    _check_transfer_encoding(head.headers, head.version, length)
    return CHUNKED


def response_framing(method: bytes, head: ResponseHead) -> BodyFraming:
    """RFC 9112 §6.3 for responses to `method`; raises ProtocolError(502) where two readers could differ."""
    try:
        length = _content_length(head.headers)
        chunked = b"transfer-encoding" in head.headers
        if chunked:
            _check_transfer_encoding(head.headers, head.version, length)
    except ProtocolError as error:
        raise ProtocolError(f"origin framed its response ambiguously: {error}", 502) from None
    if method == b"HEAD" or head.status < 200 or head.status in (204, 304):
        return NO_BODY
    if chunked:
        return CHUNKED
    return UNTIL_CLOSE if length is None else BodyFraming(Framing.LENGTH, length)


def _content_length(headers: Headers) -> Optional[int]:
    value = headers.get(b"content-length")
    if value is None:
        return None
    # Different repeats arrive here joined by a comma, and are refused with the rest.
    if _DIGITS.fullmatch(value) is None:
        raise ProtocolError("Content-Length is not one decimal number")
    return int(value)


def _check_transfer_encoding(headers: Headers, version: int, length: Optional[int]) -> None:
    if length is not None:
        raise ProtocolError("both Content-Length and Transfer-Encoding")
    if version < 1:
        raise ProtocolError("Transfer-Encoding in an HTTP/1.0 message")
    codings = headers.tokens(b"transfer-encoding")
    if codings == [b"chunked"]:
        return
    if not codings or codings[-1] != b"chunked" or codings.count(b"chunked") > 1:
        raise ProtocolError("Transfer-Encoding does not end in one chunked")
    raise ProtocolError("only the chunked transfer coding is spoken here", 501)


_CHUNK_EXTENSION = (
    rb"(?:[ \t]*;[ \t]*[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
    rb"(?:[ \t]*=[ \t]*(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
    rb'|"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t\x20-\x7e\x80-\xff])*"))?)*'
)
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})" + _CHUNK_EXTENSION + rb"\r\n")


def parse_chunk_line(line: bytes, sender: Sender = Sender.CLIENT) -> int:
    """The size in a chunk's first line, including its CRLF; extensions are checked and ignored (RFC 9112 §7.1).

    Some origins and load balancers pad it with blanks to a fixed width.
    """
    if sender is Sender.ORIGIN and line.endswith(b"\r\n"):
        line = line[:-2].rstrip(b" \t") + b"\r\n"
    match = _CHUNK_LINE.fullmatch(line)
    if match is None:
        raise ProtocolError("malformed chunk size")
    return int(match.group(1), 16)


# RFC 9110 §6.5.1: fields that frame, route or authenticate a message have no meaning in trailers, and are dropped.
_NOT_IN_TRAILERS = frozenset(
    b"authorization cache-control content-encoding content-length content-range content-type cookie expect host "
    b"max-forwards pragma range set-cookie trailer www-authenticate".split()
)


def parse_trailer_line(line: bytes, sender: Sender = Sender.CLIENT) -> Field:
    """Parse one line of a trailer section, including its CRLF; raises ProtocolError where malformed."""
    if not line.endswith(b"\r\n") or not _has_allowed_bytes(line) or b"\n" in line[:-2]:
        raise ProtocolError("malformed trailer field")
    return next(iter(_parse_fields([line[:-2]], sender)))


def serialise_trailers(fields: Iterable[Field]) -> bytes:
    """The lines of a trailer section, without the final empty line and without fields that are not allowed there."""
    kept = Headers(fields).end_to_end().without(_NOT_IN_TRAILERS)
    return b"".join(b"%s: %s\r\n" % (canonical(name), value) for name, value in kept)


# --- targets ------------------------------------------------------------------------------------

_DEFAULT_PORT = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Authority:
    """A host, lower-case, without brackets or trailing dot, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Target:
    """The normalised target of a request: the only form that routing, cache and upstream use.

    `path` keeps its percent-encoding; `query` is without its question mark, None where there is none.
    """

    scheme: str
    authority: Authority
    path: str
    query: Optional[str] = None

    @property
    def host_field(self) -> str:
        """The value of a Host field for it: the port only if it is not the scheme's default."""
        if self.authority.port != _DEFAULT_PORT[self.scheme]:
            return str(self.authority)
        host = self.authority.host
        return f"[{host}]" if ":" in host else host

    @property
    def path_query(self) -> str:
        """The origin-form (RFC 9112 §3.2.1)."""
        return self.path if self.query is None else f"{self.path}?{self.query}"

    def __str__(self) -> str:
        # RFC 9112 §3.2.4: `*` at an origin is an empty path in absolute form.
        return f"{self.scheme}://{self.host_field}{'' if self.path == '*' else self.path_query}"


_HOST_NAME = re.compile(rb"[0-9A-Za-z_](?:[0-9A-Za-z_.-]{0,252}[0-9A-Za-z_])?\.?")
_AUTHORITY = re.compile(rb"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]@/]+))(?::([0-9]{0,5}))?")
# A path begins with a slash, or is empty. Characters that could belong to host and path alike would cause backtracking.
_ABSOLUTE = re.compile(rb"([A-Za-z][A-Za-z0-9+.\-]*)://([^/?#]*)((?:/[^?#\x00-\x20\x7f]*)?)(?:\?([^#\x00-\x20\x7f]*))?")
_ORIGIN = re.compile(rb"(/[^?#\x00-\x20\x7f]*)(?:\?([^#\x00-\x20\x7f]*))?")
_RAW_BYTE = re.compile(rb"[\x80-\xff]")


def parse_authority(text: bytes, default_port: Optional[int]) -> Authority:
    """Parse `host`, `host:port` or `[v6]:port`; userinfo, zones and odd characters are refused.

    Raises ProtocolError(400), also without a port and a default.
    """
    match = _AUTHORITY.fullmatch(text)
    if match is None:
        raise ProtocolError("malformed host or port")
    literal, name, digits = match.groups()
    port = int(digits) if digits else default_port  # an empty port is the default one (RFC 9110 §4.2.3)
    if port is None or not 0 < port < 65536:
        raise ProtocolError("missing or impossible port")
    if literal is not None:
        try:
            return Authority(str(ipaddress.IPv6Address(literal.decode())), port)
        except ValueError:
            raise ProtocolError("malformed IPv6 address") from None
    if _HOST_NAME.fullmatch(name) is None or b".." in name:
        raise ProtocolError("malformed host name")
    return Authority(name.decode().lower().rstrip("."), port)


def parse_absolute(target: bytes) -> Target:
    """Parse an absolute-form target or an absolute URL of http or https (RFC 9112 §3.2.2)."""
    match = _ABSOLUTE.fullmatch(target)
    if match is None:
        raise ProtocolError("malformed request target")
    scheme = match.group(1).decode().lower()
    if scheme not in _DEFAULT_PORT:
        raise ProtocolError(f"only http and https are proxied, not {scheme}", 501)
    authority = parse_authority(match.group(2), _DEFAULT_PORT[scheme])
    return _target(scheme, authority, match.group(3) or b"/", match.group(4))


def parse_origin_form(target: bytes, scheme: str, authority: Authority) -> Target:
    """Parse an origin-form target at a known scheme and authority (RFC 9112 §3.2.1)."""
    return Target(scheme, authority, *split_origin_form(target))


def split_origin_form(target: bytes) -> Tuple[str, Optional[str]]:
    """Path and query of an origin-form target, as in a `Target`. Raises ProtocolError."""
    match = _ORIGIN.fullmatch(target)
    if match is None:
        raise ProtocolError("malformed request target")
    path, query = match.groups()
    return _text(path), None if query is None else _text(query)


def resolve(base: Target, reference: bytes) -> Optional[Target]:
    """The target of a URI reference such as Location's (RFC 3986 §5); None where it is not a URL of http or https.

    A reference longer than any request line cannot be requested.
    """
    if len(reference) > REQUEST_LINE_LIMIT:
        return None
    try:
        return parse_absolute(urljoin(str(base), reference.decode("latin-1")).partition("#")[0].encode("latin-1"))
    except (ValueError, ProtocolError):
        return None


def _target(scheme: str, authority: Authority, path: bytes, query: Optional[bytes]) -> Target:
    return Target(scheme, authority, _text(path), None if query is None else _text(query))


def _text(raw: bytes) -> str:
    # curl sends a URL's UTF-8 as typed; origins expect it percent-encoded (RFC 3986 §2.5).
    if not raw.isascii():
        raw = _RAW_BYTE.sub(lambda match: b"%%%02X" % match.group()[0], raw)
    return raw.decode("ascii")


_MAX_DIGITS = 9


def forwards_left(head: RequestHead) -> Optional[int]:
    """How many more proxies may forward a TRACE or OPTIONS; None for no limit (RFC 9110 §7.6.2)."""
    value = head.headers.get(b"max-forwards")
    if value is None or head.method not in (b"TRACE", b"OPTIONS"):
        return None
    if not value.isdigit() or len(value) > _MAX_DIGITS:
        raise ProtocolError("Max-Forwards is not a number")
    return int(value)
