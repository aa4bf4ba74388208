"""Base of action plugins whose module takes long: runs it and shows meanwhile how far it is.

The module writes its progress to a small file on the host; a thread reads that file about once a second over a
copy of the connection. What it reads goes to the file named by SGLANG_OPS_PROGRESS, for whoever shows a live
table, or else to Ansible's own display now and then. Progress is a courtesy: no failure of it reaches the task.
"""

from __future__ import annotations

import copy
import json
import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

PROGRESS_VARIABLE = "SGLANG_OPS_PROGRESS"
HOST_DIRECTORY = "/run/sglang-ops"  # as in plugins/module_utils/sglang_host_progress.py
FIRST_SECONDS = 1.5  # work that is done sooner is not asked for its progress
EVERY_SECONDS = 1.0
SHOWN_EVERY_SECONDS = 10.0
# A copy of these connections may run a second command at the same time: each is a process of its own.
CONNECTIONS = frozenset({"ssh", "local"})


class ProgressAction(ActionBase):  # type: ignore[misc]  # ansible-core has no types
    """Runs the module that has the task's name, with the task's arguments and a `progress_token`.

    Subclasses with work of their own call `execute_with_progress` where others call ``_execute_module``.
    """

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        return result | self.execute_with_progress(task_vars=task_vars or {})

    def execute_with_progress(
        self,
        module_name: str | None = None,
        module_args: dict[str, Any] | None = None,
        task_vars: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Like ``_execute_module``; in check mode, which has nothing to show, just that."""
        arguments = dict(self._task.args if module_args is None else module_args)
        variables = task_vars or {}
        if self._task.check_mode:
            return dict(self._execute_module(module_name, module_args=arguments, task_vars=variables))
        token = secrets.token_hex(8)
        with self._shown(token, str(variables.get("inventory_hostname", ""))):
            arguments["progress_token"] = token
            return dict(self._execute_module(module_name, module_args=arguments, task_vars=variables))

    @contextmanager
    def _shown(self, token: str, host: str) -> Iterator[None]:
        if self._connection.transport not in CONNECTIONS:
            yield
            return
        over = threading.Event()
        reader = _Reader(copy.copy(self._connection), f"{HOST_DIRECTORY}/progress-{token}.json", host)
        thread = threading.Thread(target=reader.follow, args=(over,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(EVERY_SECONDS)  # a question still under way is left to end by itself


class _Reader:
    """Follows one progress file of one host."""

    def __init__(self, connection: Any, path: str, host: str) -> None:
        self._connection = connection
        self._command = f"cat {path}"
        self._host = host
        self._last: dict[str, Any] = {}
        self._shown = time.monotonic()

    def follow(self, over: threading.Event) -> None:
        over.wait(FIRST_SECONDS)
        while not over.is_set():
            with suppress(Exception):
                self._look()
            over.wait(EVERY_SECONDS)

    def _look(self) -> None:
        code, output, _ = self._connection.exec_command(self._command, in_data=None, sudoable=False)
        told = json.loads(output) if code == 0 and output else {}
        if told and told != self._last:
            self._last = told
            self._tell(str(told["step"]), str(told["detail"]))

    def _tell(self, step: str, detail: str) -> None:
        file = os.environ.get(PROGRESS_VARIABLE)
        if file:
            line = json.dumps({"host": self._host, "step": step, "detail": detail})
            with Path(file).open("a", encoding="utf-8") as stream:
                stream.write(f"{line}\n")  # one write: lines of several workers do not mix
        elif time.monotonic() - self._shown >= SHOWN_EVERY_SECONDS:
            self._shown = time.monotonic()
            Display().display(f"{self._host}: {step}: {detail}")
