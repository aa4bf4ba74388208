"""Where the results of a run are brought, and how the next command finds them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sglang_ops import inventory_check, spec
from sglang_ops.commands import _deployment
from sglang_ops.errors import OpsError, UsageError
from sglang_ops.evaluation import results
from sglang_ops.evaluation.run import DEFAULT_DIRECTORY

LEAST_BYTES = 100 * 1000 * 1000  # free where results are brought


def base(config: Path | None, inventory: Sequence[str]) -> Path:
    """Where relative paths of the deployment file begin: beside it."""
    path = config or spec.find_deployment_file(None, inventory_check.paths(inventory))
    return path.absolute().parent if path else Path.cwd()


def written_directory(config: Path | None, inventory: Sequence[str]) -> Path | None:
    """execution.output_dir of the deployment file that would be taken, if there is one that can be read."""
    with _deployment.find([config] if config else None, inventory, None, {}) as found:
        return of_file(found.files[0].execution.output_dir, base(config, inventory)) if found else None


def of_file(written: str | None, beside: Path) -> Path | None:
    """A directory that a file names: like its other paths, and the roll-out's gate, relative to the file."""
    return beside / Path(written).expanduser() if written else None


@dataclass(frozen=True)
class Place:
    """A directory of runs, and the run. `config` and `given` are what the user named, for the command to type next."""

    directory: Path
    run: str
    config: Path | None = None
    given: Path | None = None

    @classmethod
    def of(cls, given: Path | None, written: Path | None, run: str, config: Path | None = None) -> Place:
        """The directory that is given, else the one that the file has written, else the usual one."""
        return cls(Path(given or written or DEFAULT_DIRECTORY).expanduser().absolute(), run, config, given)

    @property
    def folder(self) -> Path:
        return self.directory / self.run

    def of_host(self, host: str) -> Path:
        """Where what one host answered of a run with --each is brought."""
        return self.directory / f"{self.run}-{host}"

    def check(self, *, new: bool) -> None:
        """Refuse a place that cannot take results, before any host is touched. Raises UsageError."""
        above = next(path for path in (self.directory, *self.directory.parents) if path.exists())
        if not above.is_dir():
            raise UsageError(f"The output directory {self.directory} is, or lies in, a file.", fix="Give --output-dir.")
        free = shutil.disk_usage(above).free
        if free < LEAST_BYTES:
            raise UsageError(
                f"The output directory {self.directory} has {free / 1e6:.0f} MB free, results may need "
                f"{LEAST_BYTES / 1e6:.0f} MB.", fix="Make room, or give --output-dir.",
            )  # fmt: skip
        if new and (self.folder.exists() or self._apart()):
            raise UsageError(f"There are results of a run {self.run} in {self.directory}.", fix="Give another --name.")

    def _apart(self) -> bool:
        """Whether a run of this name was brought host by host; `home-2` need not be of the run `home`."""
        for path in self.directory.glob(f"{self.run}-*/{results.RUN_FILE}"):
            try:
                hosts = results.read_info(path.parent).hosts
            except OpsError:  # whatever it is, it would be written over
                return True
            if [path.parent] == [self.of_host(host) for host in hosts]:
                return True
        return False

    def words(self, verb: str) -> list[str]:
        """Flags with which `evaluate VERB` finds the same file and the same place."""
        config = ["-c", str(self.config)] if self.config and verb != "status" else []
        return [*config, *(["--output-dir", str(self.given)] if self.given and verb not in ("status", "logs") else [])]
