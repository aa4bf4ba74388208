"""Starts SGLang's router in its container with what must not stand on a command line, and with the servers it had.

The router takes its keys as flags only, and `ps` shows flags to everyone: so they are added here, in the process.
Keys and members lie in files of the gateway's host that are mounted at DIRECTORY.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

DIRECTORY = Path("/run/sglang-ops/gateway")
# As sglang_ops.spec.gateway.API_KEY has it.
API_KEY = "SGLANG_OPS_GATEWAY_API_KEY"
# With power_of_two the router does not start with fewer than two servers, while more can join later.
NOBODY = ("http://127.0.0.1:9", "http://127.0.0.2:9")


def words(given: list[str], directory: Path, environment: dict[str, str]) -> list[str]:
    """The router's arguments: those of the unit, the keys, the servers that are members."""
    control = (directory / "control-plane.key").read_text().strip()
    keys = ["--control-plane-api-keys", f"sglang-ops:sglang-ops:admin:{control}"]
    if environment.get(API_KEY):
        keys += ["--api-key", environment[API_KEY]]
    members = directory / "members.json"
    known = json.loads(members.read_text()) if members.exists() else {}
    urls = sorted(url for url, state in known.items() if state == "in")
    if "power_of_two" in given:
        urls += NOBODY[: max(0, 2 - len(urls))]
    return [*given, *keys, *(["--worker-urls", *urls] if urls else [])]


if __name__ == "__main__":
    from sglang_router.launch_router import launch_router, parse_router_args

    launch_router(parse_router_args(words(sys.argv[1:], DIRECTORY, dict(os.environ))))
