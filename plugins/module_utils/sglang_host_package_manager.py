"""What package managers have in common: one error, and patience with whoever else is at work. Python 3.8."""

from __future__ import annotations

import time

LOCK_SECONDS = 300  # an unattended upgrade of a few packages takes minutes, not more
_EVERY_SECONDS = 3


class PackageError(Exception):
    """Packages cannot be had; one sentence says why and what to do. `output` is what the package manager said."""

    def __init__(self, message: str, output: str = "") -> None:
        super().__init__(message)
        self.output = output


class SignatureError(PackageError):
    """A repository is not signed by the key that it should be signed by."""


def patiently(attempt, holder, progress):
    """The output of `attempt()`, tried again while another package manager is at work.

    `holder(output)` says who holds the lock that the attempt failed on, None where it was no lock. Raises PackageError
    after LOCK_SECONDS.
    """
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        done = attempt()
        who = holder(done)
        if who is None:
            return done
        if time.monotonic() > deadline:
            raise PackageError("%s has kept the package database locked for %d s. Wait for it, or end it in order "
                               "(systemctl stop unattended-upgrades), and run this again." % (who, LOCK_SECONDS))
        progress.report("waiting for %s" % who)
        time.sleep(_EVERY_SECONDS)
