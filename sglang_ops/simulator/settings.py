"""What the environment says about this simulator: its speed and the faults it is to have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from .answers import Scripted, load

FAULT_VARIABLE = "SGLANG_SIMULATOR_FAULT"
FAULT_PORT_VARIABLE = "SGLANG_SIMULATOR_FAULT_PORT"
STARTUP_VARIABLE = "SGLANG_SIMULATOR_STARTUP_SECONDS"
SPEED_VARIABLE = "SGLANG_SIMULATOR_TOKENS_PER_SECOND"
POLL_VARIABLE = "SGLANG_SIMULATOR_DRAIN_POLL"
VISION_VARIABLE = "SGLANG_SIMULATOR_VISION"
ANSWERS_VARIABLE = "SGLANG_SIMULATOR_ANSWERS"


@dataclass(frozen=True)
class Faults:
    """The faults of `SGLANG_SIMULATOR_FAULT`, by their names there with `-` for `_`. Times are seconds."""

    slow_start: float = 0.0  # that much longer until the port opens
    never_healthy: bool = False  # the port opens, but /health and /ready answer 503 for ever
    crash_at_start: bool = False  # the scheduler dies of an exception while it loads the weights
    crash_after: float | None = None  # the scheduler is killed that long after the server got healthy
    wrong_model: bool = False  # /v1/models names another model
    garbage: bool = False  # completions answer 200 with a page of HTML
    unconstrained: bool = False  # answers ignore the schema or expression that the request prescribes
    exit_zero: bool = False  # crashes end with exit code 0; alone, it is a crash at start
    ignore_sigterm: bool = False
    out_of_memory: bool = False  # the GPU's memory does not suffice for the KV cache

    def __str__(self) -> str:
        return ", ".join(
            field.name.replace("_", "-") for field in fields(self) if getattr(self, field.name) != field.default
        )

    @property
    def dies_at_start(self) -> bool:
        """Whether the scheduler's exception comes while the weights are loaded."""
        return self.crash_at_start or (self.exit_zero and self.crash_after is None and not self.out_of_memory)


@dataclass(frozen=True)
class Settings:
    """How fast the simulator is, in seconds and tokens per second and request, what it takes, and its faults."""

    faults: Faults = Faults()
    fault_port: int = 0  # of several servers with the same environment only that on this port has the faults; 0 is all
    startup_seconds: float = 1.0
    tokens_per_second: float = 2000.0
    poll_seconds: float = 5.0  # SGLang's own constant: its watchdog looks that often whether it may go
    vision: bool = False  # whether its model takes images
    answers: tuple[Scripted, ...] = ()  # what is answered to which prompt; every other one gets the same sentence


def at(port: int, settings: Settings) -> Settings:
    """The settings for the server on `port`."""
    return settings if settings.fault_port in (0, port) else replace(settings, faults=Faults())


def settings_of(environment: Mapping[str, str]) -> Settings:
    """The settings in `environment`. Raises ValueError with a sentence that names the variable."""

    def number(variable: str, default: float) -> float:
        return _not_negative(variable, environment[variable]) if environment.get(variable) else default

    if number(SPEED_VARIABLE, 1.0) == 0.0:
        raise ValueError(f"{SPEED_VARIABLE}: 0 tokens per second would never answer")
    if environment.get(VISION_VARIABLE, "") not in {"", "0", "1"}:
        raise ValueError(f"{VISION_VARIABLE}: {environment[VISION_VARIABLE]!r} is neither 0 nor 1")
    return Settings(
        faults=faults_of(environment.get(FAULT_VARIABLE, "")),
        fault_port=int(number(FAULT_PORT_VARIABLE, 0)),
        startup_seconds=number(STARTUP_VARIABLE, Settings.startup_seconds),
        tokens_per_second=number(SPEED_VARIABLE, Settings.tokens_per_second),
        poll_seconds=number(POLL_VARIABLE, Settings.poll_seconds),
        vision=environment.get(VISION_VARIABLE) == "1",
        answers=tuple(load(environment.get(ANSWERS_VARIABLE, ""))),
    )


def faults_of(text: str) -> Faults:
    """The faults in a list such as "wrong-model,crash-after:10"; an empty text is none."""
    takes_seconds = {field.name: str(field.type).startswith("float") for field in fields(Faults)}
    chosen: dict[str, Any] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, colon, seconds = item.partition(":")
        field = name.replace("-", "_")
        if field not in takes_seconds or "_" in name:
            known = ", ".join(
                known.replace("_", "-") + (":SECONDS" if timed else "") for known, timed in takes_seconds.items()
            )
            raise ValueError(f"{FAULT_VARIABLE}: unknown fault {name!r}; the faults are {known}")
        if takes_seconds[field] != bool(colon):
            raise ValueError(
                f"{FAULT_VARIABLE}: {name!r} {'needs' if takes_seconds[field] else 'takes no'} seconds after a colon"
            )
        chosen[field] = _not_negative(FAULT_VARIABLE, seconds) if colon else True
    return Faults(**chosen)


def _not_negative(variable: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0.0 <= number < float("inf"):
        raise ValueError(f"{variable}: {text!r} is not a number from 0 up")
    return number
