"""sglang-ops history"""

from __future__ import annotations

from itertools import islice
from typing import Annotated

import typer

from sglang_ops import runs
from sglang_ops.commands import _common, _options, _views
from sglang_ops.commands._options import Output
from sglang_ops.errors import ExitCode

Number = Annotated[int, typer.Option("--lines", "-n", metavar="N", min=1, help="Newest runs to show.")]
All = Annotated[bool, typer.Option("--all", "-a", help="Also runs that only looked: status, logs, verify.")]


def history(number: Number = 20, everything: All = False, output: _options.OutputFormat = Output.TABLE) -> int:
    """List the runs of this machine: when, who, what, on which hosts, how it ended."""
    chosen = (record for record in runs.history() if everything or record.verb not in runs.READS)
    found = list(islice(chosen, number))
    if output is Output.JSON:
        _common.print_json({"runs": [record.as_dict() for record in found], "folder": str(runs.state_dir() / "runs")})
    elif found:
        _common.stdout().print(_views.history(found))
        _common.stderr().print(f"Run folders: {runs.state_dir() / 'runs'}", soft_wrap=True)
    else:
        _common.stderr().print(f"No run is recorded in {runs.state_dir() / 'runs'}.", soft_wrap=True)
    return ExitCode.DONE
