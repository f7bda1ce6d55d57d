"""An HTTPS origin as a process of its own: serves a directory on 127.0.0.1 and writes a line for each request."""

from __future__ import annotations

import functools
import http.server
import ssl
import sys
from typing import Any


class Handler(http.server.SimpleHTTPRequestHandler):
    """Static files that are fresh for a day; the log is standard output."""

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "max-age=86400")
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        print(format % args, flush=True)


def main() -> None:
    """`origin.py CERTIFICATE KEY DIRECTORY PORT`."""
    certificate, key, directory, port = sys.argv[1:]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    handler = functools.partial(Handler, directory=directory)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), handler)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    print("ready", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
