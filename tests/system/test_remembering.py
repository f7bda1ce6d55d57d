"""Every cache of a running dduct is bounded."""

from __future__ import annotations

from support.modules import caches
from support.running import RunningDduct

# Caches whose values are short by themselves, or are not chosen by others.
BOUNDED = {
    "net.addresses.is_loopback": "addresses as sockets write them, and host names of 254 characters at most",
    "net.addresses.Networks._look_up": "the same",
    "proxy.connections._arrival_at": "our own addresses",
    "monitoring.log._moment": "two seconds",
    "monitoring.log._origin": "our own levels and loggers",
    "protocol.http1.reason_phrase": "numbers of three digits",
    "fetching.stored_metadata.stored_fields": "a record of at most 3 KiB",
    "tls.openssl": "nothing that others choose",
    "proxy.routing._decide_get": "`decide` asks for short ones only",
    "proxy.opening._named": "host names of 253 characters at most",
    "proxy.opening.established": "one value",
    "server.patterns.too_slow": "the operator's own patterns",
    "storage.record.Record.decode": "an attribute of at most 3 KiB",
    "pages.setup": "our own script",
    "storage.store.Store._paths": "`paths` asks for short ones only",
}


def test_every_function_cache_is_bounded_in_bytes(dduct: RunningDduct) -> None:
    unknown = [
        name
        for name, one in caches().items()
        if not hasattr(one, "longest")
        and name not in BOUNDED
        and not any(name.startswith(f"{one}.") for one in BOUNDED)
    ]
    assert unknown == []
    assert sum(hasattr(one, "longest") for one in caches().values()) >= 3
