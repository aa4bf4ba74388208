"""sglang-ops evaluate: the quality of deployed models"""

from __future__ import annotations

import typer

from sglang_ops.commands.evaluate_compare import compare
from sglang_ops.commands.evaluate_export import export
from sglang_ops.commands.evaluate_gate import gate
from sglang_ops.commands.evaluate_report import report

app = typer.Typer(
    help="Measure the quality of deployed models where they run.",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (report, compare, gate, export):
    app.command()(verb)
