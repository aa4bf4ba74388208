"""What was measured, and what follows from it: medians, ratios, and whether the targets are reached. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from bench.contenders import OURS, PLAIN, PYINFRA, Sample

PASS, HELP, VALIDATE = "python -c pass", "sglang-ops --help", "sglang-ops validate"


@dataclass(frozen=True)
class Median:
    """The middle of several runs. Seconds; `cpu_per_host` is the controller's."""

    wall: float
    cpu_per_host: float
    executions: int

    @classmethod
    def of(cls, samples: Sequence[Sample], hosts: int) -> Median:
        return cls(
            median(sample.wall for sample in samples),
            median(sample.cpu for sample in samples) / hosts,
            max(sample.executions for sample in samples),
        )


@dataclass(frozen=True)
class Target:
    """Something to reach: a value that is at most `limit`."""

    name: str
    value: float
    limit: float

    @property
    def reached(self) -> bool:
        return self.value <= self.limit


@dataclass
class Figures:
    """All samples of one run of the bench, by contender or command. Wall times in seconds.

    `first`: on blank hosts. `noop`: again, with new SSH connections. `connected`: again, within the minute
    that Ansible keeps connections open.
    """

    hosts: int
    floor: list[Sample] = field(default_factory=list)
    first: dict[str, list[Sample]] = field(default_factory=dict)
    noop: dict[str, list[Sample]] = field(default_factory=dict)
    connected: dict[str, list[Sample]] = field(default_factory=dict)
    startup: dict[str, list[float]] = field(default_factory=dict)

    def median(self, series: Mapping[str, Sequence[Sample]], name: str) -> Median:
        return Median.of(series[name], self.hosts)

    def ratio(self, series: Mapping[str, Sequence[Sample]], name: str, other: str) -> float:
        """Wall time of `name` as a multiple of the wall time of `other`."""
        return self.median(series, name).wall / self.median(series, other).wall

    def targets(self) -> list[Target]:
        return [
            Target("no-op, sglang-ops ÷ plain Ansible role", self.ratio(self.noop, OURS, PLAIN), 0.10),
            Target("no-op, sglang-ops ÷ pyinfra", self.ratio(self.noop, OURS, PYINFRA), 0.80),
            Target("sglang-ops --help, seconds", median(self.startup[HELP]), 0.25),
            Target("sglang-ops validate, seconds", median(self.startup[VALIDATE]), 0.70),
        ]

    def as_dict(self) -> dict[str, Any]:
        """Medians, targets and every single sample, for JSON."""
        series = {"first_deploy": self.first, "noop": self.noop, "noop_connected": self.connected}
        return {
            "hosts": self.hosts,
            "floor": asdict(Median.of(self.floor, self.hosts)),
            **{key: {name: asdict(self.median(samples, name)) for name in samples} for key, samples in series.items()},
            "startup": {name: {"median": median(walls), "best": min(walls)} for name, walls in self.startup.items()},
            "targets": [{**asdict(target), "reached": target.reached} for target in self.targets()],
            "samples": asdict(self),
        }
