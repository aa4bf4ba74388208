"""The command `sglang` of a simulated image: `sglang serve MODEL …` and `sglang version`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from . import NAME, SGLANG_VERSION
from . import main as server


def main(argv: Sequence[str] | None = None) -> None:
    """Run one of the commands. Ends the process by SystemExit."""
    verb, *arguments = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if verb == "serve":
        if arguments and not arguments[0].startswith("-"):
            arguments.insert(0, "--model-path")
        server.main(arguments)
    if verb == "version":
        sys.stdout.write(f"{NAME} of sglang {SGLANG_VERSION}\n")
        sys.exit(0)
    sys.stderr.write("usage: sglang {serve,version} ...\n")
    sys.exit(2)
