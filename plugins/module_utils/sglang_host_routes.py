"""How a host reaches the others of its group. Python 3.8, standard library."""

from __future__ import annotations

import fcntl
import os
import socket
import struct

INFINIBAND = "/dev/infiniband"
ADDRESSES6 = "/proc/net/if_inet6"
_SIOCGIFADDR = 0x8915


def infiniband():
    return os.path.isdir(INFINIBAND)


def interface_to(address):
    """The interface that leads to `address` (a name or a number), "" where that cannot be told."""
    try:
        return _named(_source(address)) if address else ""
    except OSError:
        return ""


def _source(address):
    """The host's own address on the way there; nothing is sent."""
    family, kind, protocol, _, place = socket.getaddrinfo(address, 9, socket.AF_UNSPEC, socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as asked:
        asked.connect(place)
        return asked.getsockname()[0]


def _named(address):
    if ":" in address:
        return _named6(address)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        for _, name in socket.if_nameindex():
            try:
                reply = fcntl.ioctl(asked.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:  # no IPv4 address
                continue
            if socket.inet_ntoa(reply[20:24]) == address:
                return name
    return ""


def _named6(address):
    """The interface that has an IPv6 address."""
    wanted = socket.inet_pton(socket.AF_INET6, address.partition("%")[0]).hex()
    with open(ADDRESSES6, encoding="ascii") as stream:
        rows = [line.split() for line in stream]
    return next((row[5] for row in rows if row[0] == wanted), "")
