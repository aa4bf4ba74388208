"""A roll-out's gate by an evaluation: what is asked of the canary, and whether its answers let the release go on."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sglang_ops.errors import UsageError
from sglang_ops.evaluation import policy, results, run
from sglang_ops.spec import Deployment, DeploymentFile

WORDS = {policy.Verdict.GO: "go", policy.Verdict.NO_GO: "no-go", policy.Verdict.INCONCLUSIVE: "inconclusive"}


@dataclass(frozen=True)
class ReleaseGate:
    """One `rollout.gate` with a policy, read and checked: the work for the host, and what judges its results."""

    work: run.Work
    policy: policy.Policy
    baseline: results.Run | None
    output: Path

    def decide(self, folder: Path) -> tuple[str, str]:
        """(go, no-go or inconclusive, why) of the results in `folder`."""
        decision = policy.decide(results.read(folder), self.baseline, self.policy)
        blocking = [f"{item.task}: {item.why}" for item in decision.criteria if item.blocks]
        shown = blocking or [f"{item.task}: {item.why}" for item in decision.criteria]
        return WORDS[decision.verdict], f"{'; '.join(shown)} (results in {folder})"


def read(gate: Mapping[str, Any], file: DeploymentFile, deployment: Deployment, base: Path) -> ReleaseGate:
    """The gate of `rollout.gate` (as it is in a plan). Relative paths begin at `base`.

    Raises UsageError, SpecErrors of the policy, ResultError of the baseline.
    """
    rules = policy.load(base / str(gate["policy"]))
    baseline = results.read(results.locate(str(base / str(gate["baseline"])))) if gate.get("baseline") else None
    dropping = [name for name in rules.tasks if rules.rule(name).max_drop is not None]
    if dropping and baseline is None:
        raise UsageError(
            f"rollout.gate: the policy has max_drop for {dropping[0]}, and there is no baseline.",
            fix="Set rollout.gate.baseline to the folder of a run.",
        )
    name = f"gate-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    made = run.work(
        file, deployment, run=name, base=base, only=tuple(gate.get("tasks") or ()) or tuple(rules.tasks),
        limit=gate.get("limit_samples"), repeat_on_hosts=True,
    )  # fmt: skip
    asked = [task["name"] for task in made.job["tasks"]]
    unasked = next((task for task in rules.tasks if task not in asked), None)
    if unasked:
        raise UsageError(
            f"rollout.gate: the policy judges {unasked}, and the tasks are {', '.join(asked)}.",
            fix="Add it to rollout.gate.tasks, or take it out of the policy.",
        )
    output = base / str(file.execution.output_dir or run.DEFAULT_DIRECTORY)
    return ReleaseGate(replace(made, job=made.job | {"gate": True}), rules, baseline, output)
