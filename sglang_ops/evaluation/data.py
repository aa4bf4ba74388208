"""Which data goes along with a run: what a task's `dataset_dir` holds on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sglang_ops.errors import UsageError
from sglang_ops.planning.command import Mount

MOST_CARRIED = 16 * 1024 * 1024  # bytes of all that travels with a run; more is put on the hosts beforehand


def of_task(task: str, written: str, name: str, base: Path) -> tuple[dict[str, Path], Mount | None]:
    """The files below a `dataset_dir`, by their names below the run's directory, where it is a relative path (from
    `base` on); else the mount of the host's directory. Raises UsageError."""
    if written.startswith("/"):
        return {}, Mount(written, f"/evaluation/data/{name}", read_only=True)
    directory = base / written
    if not directory.is_dir():
        raise UsageError(
            f"{task}: dataset_dir {written} is no directory beside the deployment file ({directory}).",
            fix="Correct it; an absolute path is one on the hosts.",
        )
    names = [path.relative_to(directory) for path in sorted(directory.rglob("*")) if path.is_file()]
    seen = [path for path in names if not any(part.startswith(".") for part in path.parts)]  # no .git, no .cache
    return {f"data/{name}/{path.as_posix()}": directory / path for path in seen}, None


def check(files: Mapping[str, Path]) -> None:
    """Refuse more than can travel with a run. Raises UsageError."""
    sizes: dict[str, int] = {}
    for path in files.values():
        sizes[str(path.parent)] = sizes.get(str(path.parent), 0) + path.stat().st_size
    if sum(sizes.values()) > MOST_CARRIED:
        largest = max(sizes, key=lambda folder: sizes[folder])
        raise UsageError(
            f"The tasks' dataset_dir hold {sum(sizes.values()) / 1e6:.0f} MB, most of it {largest}; "
            f"{MOST_CARRIED / 1e6:.0f} MB can go along with a run.",
            fix="Put them on the hosts and write absolute paths.",
        )
