"""sglang-ops evaluate gate"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from sglang_ops.commands import _common, _evaluate_runs, _options, _views
from sglang_ops.commands._options import Output

COLOURS = {"GO": "green", "NO-GO": "red", "INCONCLUSIVE": "yellow"}

PolicyFile = Annotated[
    Path, typer.Option("--policy", metavar="FILE", help="Limits per task: min_score, max_drop, max_failed, tier.")
]
Baseline = Annotated[
    str | None,
    typer.Option("--baseline", metavar="RUN", help="Run to compare with, where the policy has max_drop."),
]


def gate(
    run: _evaluate_runs.RunName,
    policy: PolicyFile,
    baseline: Baseline = None,
    output_dir: _evaluate_runs.OutputDir = None,
    output: _options.OutputFormat = Output.TABLE,
) -> int:
    """Say by a policy whether a run is good enough: GO, NO-GO or INCONCLUSIVE.

    Ends with 0, 1 or 2. INCONCLUSIVE: too few items to be sure, or some are missing.
    """
    from sglang_ops.evaluation import policy as policies

    rules = policies.load(policy)
    found = _evaluate_runs.read(run, output_dir)
    decision = policies.decide(found, _evaluate_runs.read(baseline, output_dir) if baseline else None, rules)
    if output is Output.JSON:
        _common.print_json({"ok": decision.exit_code == 0, "exit_code": decision.exit_code, **decision.as_dict()})
        return decision.exit_code
    table = _views.grid("task", "tier", "limit", "verdict", "why")
    for item in decision.criteria:
        table.add_row(item.task, str(item.tier), item.name, _coloured(item.verdict), Text(item.why))
    _common.stdout().print(table)
    _common.stdout().print(_coloured(decision.verdict, "bold"))
    if decision.unjudged:
        _common.stderr().print(f"The policy says nothing of {', '.join(decision.unjudged)}.", soft_wrap=True)
    return decision.exit_code


def _coloured(verdict: str, style: str = "") -> Text:
    return Text(str(verdict), style=f"{style} {COLOURS[str(verdict)]}".strip())
