"""What can be said about an inventory before Ansible starts: missing, unreadable and empty ones.

Anything else an inventory may be (INI, YAML, script, plugin, directory, ``host1,host2``) is Ansible's to judge;
`sglang_ops.events` turns its verdict into a sentence.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sglang_ops import runner
from sglang_ops.errors import UsageError

_FIX_EMPTY = "List your hosts in it, one per line, or point --inventory at another file."


def check(sources: Sequence[str]) -> None:
    """Raise UsageError unless every inventory source is there and says something."""
    for source in sources:
        if "," in source:
            if not source.strip(", "):
                raise UsageError(f"The inventory '{source}' names no host.", fix="Write for example -i gpu-1,gpu-2")
            continue
        path = Path(source)
        if not path.exists():
            fix = "Check the path; a list of hosts needs a comma: -i HOST,"
            raise UsageError(f"There is no inventory '{source}'.", fix=fix)
        if not os.access(path, os.R_OK):
            raise UsageError(f"The inventory '{source}' cannot be read.", fix=f"Check the permissions of {source}.")
        if path.is_dir():
            if not any(not entry.name.startswith(".") for entry in path.iterdir()):
                raise UsageError(f"The inventory directory '{source}' is empty.", fix=_FIX_EMPTY)
        elif not os.access(path, os.X_OK) and not _says_something(path):
            raise UsageError(f"The inventory '{source}' is empty.", fix=_FIX_EMPTY)


def _says_something(path: Path) -> bool:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return any(line.strip() and not line.lstrip().startswith(("#", ";", "---")) for line in lines)


def paths(sources: Sequence[str]) -> list[Path]:
    """The sources that are files or directories."""
    return [Path(source) for source in sources if "," not in source]


def variable(sources: Sequence[str], name: str, limit: str | None) -> Any:
    """The value that all hosts share for a variable; None where no host has it. Takes about a second.

    Raises UsageError where hosts disagree: one run does one thing.
    """
    command = ["ansible-inventory", "--list", *(part for source in sources for part in ("-i", runner.absolute(source)))]
    command += ["--limit", limit] if limit else []
    done = subprocess.run(command, env=os.environ | runner.environment(), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UsageError(f"Ansible cannot read the inventory: {last.removeprefix('[ERROR]: ')}")
    hosts: dict[str, dict[str, Any]] = json.loads(done.stdout).get("_meta", {}).get("hostvars", {})
    values = {host: variables[name] for host, variables in hosts.items() if name in variables}
    distinct = {json.dumps(value, sort_keys=True): host for host, value in values.items()}
    if len(distinct) > 1:
        first, second = sorted(distinct.values())[:2]
        raise UsageError(
            f"'{name}' differs between hosts ({first} and {second}), and one run deploys one thing.",
            fix="Choose the hosts that share it with --limit, or name a file with --config.",
        )
    return next(iter(values.values()), None)
