"""Who runs this command, as hosts, run folders and other operators are told."""

from __future__ import annotations

import getpass
import os
import socket


def user() -> str:
    """The person, also where sudo is between."""
    return os.environ.get("SUDO_USER") or getpass.getuser()


def who() -> str:
    """The person and the machine: `ana@laptop`."""
    return f"{user()}@{socket.gethostname()}"
