"""Every error that a user can meet, and the exit code that belongs to it.

A command never prints an error and never calls ``sys.exit``: it raises an `OpsError`, and ``cli.main`` is the
one place that catches it, prints it and exits.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What the process returns; scripts may rely on these numbers."""

    DONE = 0
    ERROR = 1
    PENDING = 2  # --detailed-exitcode: --check found changes
    ROLLED_BACK = 3  # the new release failed, the old one serves
    NEEDS_HANDS = 4  # failed, and nobody put it right
    LOCKED = 5  # someone else is at work on these hosts
    UNREACHABLE = 6  # no SSH connection to at least one host
    REFUSED = 7  # the file or the preflight is wrong; nothing was touched
    INTERRUPTED = 130


class OpsError(Exception):
    """An error with one sentence of cause (`message`) and, where we know it, one of remedy (`fix`)."""

    exit_code: ExitCode = ExitCode.ERROR

    def __init__(self, message: str, *, fix: str | None = None, exit_code: ExitCode | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix
        if exit_code is not None:
            self.exit_code = exit_code


class UsageError(OpsError):
    """The command line, the inventory or the deployment file is wrong."""

    exit_code = ExitCode.REFUSED


class PreflightError(OpsError):
    """A host cannot take what the deployment asks for; nothing was touched."""

    exit_code = ExitCode.REFUSED


class UnreachableError(OpsError):
    """At least one host could not be reached over SSH."""

    exit_code = ExitCode.UNREACHABLE


class RolledBackError(OpsError):
    """The new release failed and the old one serves again."""

    exit_code = ExitCode.ROLLED_BACK


class NeedsHandsError(OpsError):
    """A host is left in a state that only a person can put right."""

    exit_code = ExitCode.NEEDS_HANDS


class LockedError(OpsError):
    """Another run holds the lock of at least one host."""

    exit_code = ExitCode.LOCKED
