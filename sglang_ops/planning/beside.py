"""Names, ports and addresses of a second server that stands beside a service while that changes."""

from __future__ import annotations

from collections.abc import Sequence

SUFFIX = "-surge"
PORT_STEP = 1000
LAST_PORT = 65535


def name_beside(name: str) -> str:
    return name + SUFFIX


def port_beside(port: int) -> int:
    """The port of the second server: 1000 above, or below where there is no such port."""
    return port + PORT_STEP if port + PORT_STEP <= LAST_PORT else port - PORT_STEP


def sharing_hosts(urls: Sequence[str], workers: Sequence[str]) -> set[str]:
    """Those of `urls` that are on a host which has one of the `workers`: servers of a change that is not over."""
    hosts = {_host(url) for url in workers}
    return {url for url in urls if _host(url) in hosts}


def _host(url: str) -> str:
    return url.rpartition(":")[0]
