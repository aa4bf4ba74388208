"""Writes one JSON line for each task or loop item that a host ran, so that the bench can count them.

The file is named by the environment variable BENCH_EXECUTIONS. Changes nothing in the run.
"""

from __future__ import annotations

import json
import os
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: executions
type: aggregate
short_description: Log what ran on which host
description: [One JSON line for each result of a host.]
"""


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "executions"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self._log = open(os.environ.get("BENCH_EXECUTIONS", os.devnull), "a", buffering=1)  # noqa: SIM115, PTH123

    def _note(self, result: Any) -> None:
        line = {
            "host": result.host.get_name(),
            "action": result.task.resolved_action or result.task.action,
            "changed": bool(result.result.get("changed")),
        }
        self._log.write(json.dumps(line) + "\n")

    def _note_unless_loop(self, result: Any, **_: Any) -> None:
        if "results" not in result.result:  # the items of a loop have been noted one by one
            self._note(result)

    v2_runner_on_ok = v2_runner_on_failed = v2_runner_on_unreachable = _note_unless_loop
    v2_runner_item_on_ok = v2_runner_item_on_failed = v2_runner_retry = _note
