"""sglang-ops schema"""

from __future__ import annotations

import json

import typer

from sglang_ops.errors import ExitCode
from sglang_ops.spec.schema import json_schema


def schema() -> int:
    """Print the JSON Schema of the deployment file, for editors."""
    typer.echo(json.dumps(json_schema(), indent=2, ensure_ascii=False))
    return ExitCode.DONE
