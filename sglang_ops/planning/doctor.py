"""Is a host fit to serve? Every problem at once, each with its remedy; pure, from what the host reported.

Checks are small functions from what was seen to a finding or None, by topic: `doctor_system`, `doctor_gpus`,
`doctor_containers`, `doctor_surroundings`. What the deployments need of the host, planning already knows: its
reasons to refuse are findings too, except where they only follow from one of the host itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from sglang_ops.planning import doctor_containers, doctor_gpus, doctor_surroundings, doctor_system
from sglang_ops.planning.checks import check_disks
from sglang_ops.planning.doctor_containers import split
from sglang_ops.planning.doctor_facts import Examined, Finding
from sglang_ops.planning.plan import drafts
from sglang_ops.planning.problems import Problem
from sglang_ops.planning.wanted import Wanted

Check = Callable[[Examined], Finding | None]
CHECKS: tuple[Check, ...] = (
    *doctor_system.CHECKS,
    *doctor_gpus.CHECKS,
    *doctor_containers.CHECKS,
    *doctor_surroundings.CHECKS,
)
_FOR_GPUS: frozenset[Check] = frozenset((*doctor_gpus.CHECKS, *doctor_containers.GPU_CHECKS))


@dataclass(frozen=True)
class Diagnosis:
    """What is wrong with a host (then it is not fit), and what is only worth knowing."""

    problems: tuple[Finding, ...]
    warnings: tuple[Finding, ...]


def diagnose(seen: Examined, wanted: Sequence[Wanted] = (), told: Iterable[Finding] = ()) -> Diagnosis:
    """Judge a host. `wanted` are the deployments with their images, `told` what the controller found out itself."""
    checks = [check for check in CHECKS if seen.for_gpus or check not in _FOR_GPUS]
    found = [finding for check in checks if (finding := check(seen))]
    follows = _follows(seen, {finding.check for finding in found})
    refusals = [problem for problem in _refusals(wanted, seen) if problem.check not in follows]
    found += [Finding(problem.check, *split(_of_any_host(problem.message, seen.host))) for problem in refusals]
    unique = list(dict.fromkeys([*found, *told]))
    return Diagnosis(
        problems=tuple(finding for finding in unique if not finding.warning),
        warnings=tuple(finding for finding in unique if finding.warning),
    )


def _of_any_host(message: str, host: str) -> str:
    """A refusal without the host's name, so that hosts with the same problem say the same."""
    name = re.escape(host)
    without = re.sub(rf" (?:on|of) {name}(?![\w-])", "", message)
    return re.sub(rf"(?<![\w.-]){name} (?=has|shows)", "the host ", without)


def _follows(seen: Examined, found: set[str]) -> set[str]:
    """Refusals of the plan that only say again what was found about the host."""
    without_gpus = bool(seen.facts.gpu_error) or "gpu-lost" in found
    return ({"gpus", "memory", "cdi"} if without_gpus else set()) | ({"cdi"} & found)


def _refusals(wanted: Sequence[Wanted], seen: Examined) -> list[Problem]:
    """Why a plan would refuse the host."""
    made = drafts(wanted, seen.facts, seen.settings)
    problems = [problem for draft in made for problem in draft.problems]
    return list(dict.fromkeys([*problems, *check_disks(made, seen.facts, seen.settings)]))
