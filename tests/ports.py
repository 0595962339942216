"""Loopback ports for the servers that tests start."""

from __future__ import annotations

import os
import random
import socket

# Above the ports of Ray's workers (10,002 to 19,999); with weed's gRPC, 10,000 higher, below those
# that the system gives to whoever asks for any (from 32,768). Each of pytest's workers has its own.
_WORKERS = 4
_SHARE = 2_700 // _WORKERS
_FIRST = 20_000 + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % _WORKERS * _SHARE
_given: set[int] = set()


def free_port() -> int:
    """A port where nothing listens, nor 10,000 above, never given before in this process."""
    while True:
        port = random.randrange(_FIRST, _FIRST + _SHARE)
        if port in _given:
            continue
        try:
            for number in (port, port + 10_000):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", number))
        except OSError:
            continue
        _given.add(port)
        return port
