"""What the verbs of `evaluate` do with a run of this machine (`execution: local`)."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

import typer

from sglang_ops.commands import _common, _deployment, _views
from sglang_ops.commands._evaluation import NOTHING, Session, runs_of, warnings_of
from sglang_ops.errors import ExitCode, UsageError
from sglang_ops.evaluation import on_controller, run_results
from sglang_ops.evaluation.run import Work


class Here(Session):
    """One command on a run of this machine."""

    def start_here(self, source: _deployment.Source, made: Work, secrets: Mapping[str, Any], *, check: bool) -> int:
        """Run on this machine: the hosts only say what their servers allow."""
        for text in (*made.said, *on_controller.check(made)):
            _common.stderr().print(text, soft_wrap=True, markup=False)
        variables = {**source.variables, "sglang_ops_evaluation": {"do": "described", "work": made.variables()}}
        played = _common.play("evaluate", self.target, self.folder, variables, quiet=self.json)
        found = runs_of(played)
        if played.exit_code is ExitCode.DONE and not found:
            raise UsageError(f"No host of the inventory has {made.job['deployment']}.", fix="Correct `hosts`, or -i.")
        for warning in warnings_of(played):
            _common.stderr().print(f"Warning: {warning}", soft_wrap=True, markup=False)
        self._same_model(made, found, check=True)
        if played.exit_code is not ExitCode.DONE or check or played.interrupted:
            return self._end(played, found, made.run, played.exit_code)
        on_controller.prepare(made, {host: one["job"] for host, one in found.items()}, secrets)
        return self._live_here(made.run)

    def _live_here(self, run: str) -> int:
        """Watch a run of this machine to its end, or to Ctrl-C, and put its results where they belong."""
        err = _common.stderr()
        try:
            with err.status("checking data and scorers") as shown:
                now = on_controller.live(run, lambda told: shown.update(on_controller.line(told)))
        except KeyboardInterrupt:
            return self._stopped_here(run, "Stopped. What was answered is kept.", "resume")
        return self._gather_here(run, now, ExitCode.DONE if now["state"] == "done" else ExitCode.ERROR)

    def _wait_here(self, run: str) -> int:
        """Watch a run that another command has begun."""
        try:
            with _common.stderr().status("looking") as shown:
                on_controller.wait(run, lambda told: shown.update(on_controller.line(told)))
        except KeyboardInterrupt:
            return self._stopped_here(run, "Stopped watching. The run goes on.", "wait")
        now = on_controller.status(run)
        return self._gather_here(run, now, ExitCode.DONE if now["state"] == "done" else ExitCode.ERROR)

    def _stopped_here(self, run: str, text: str, then: str) -> int:
        _common.keep(self.folder, {"ok": False, "exit_code": 130, "run": run}, hosts=0, seconds=0)
        _common.stderr().print(f"\n{text}")
        _views.following([self._command(then, run)], _common.stderr())
        return ExitCode.INTERRUPTED

    def _gather_here(self, run: str, now: Mapping[str, Any], code: ExitCode) -> int:
        part = run_results.Part(
            on_controller.NAME, on_controller.directory(run), str(now["state"]), str(now.get("why") or "")
        )
        if part.read("checked.json"):
            run_results.assemble(self.place.folder, run, [part], {})
        return self._end(NOTHING, {on_controller.NAME: {"run": run, **now}}, run, code)

    def act(self, verb: str, run: str, *, check: bool) -> int:
        if verb in ("wait", "fetch", "resume"):
            self.place.check(new=False)
        if verb == "wait":
            return self._wait_here(run)
        if verb == "resume" and not check:
            on_controller.again(run)
            return self._live_here(run)
        if verb == "cancel" and not check:
            on_controller.cancel(run)
        now = on_controller.status(run)
        if verb == "rm" and not check:
            on_controller.remove(run)
            now = {**now, "state": "removed"}
        if verb == "fetch":
            return self._gather_here(run, now, ExitCode.DONE)
        return self._end(NOTHING, {on_controller.NAME: {"run": run, **now}}, run, ExitCode.DONE, brought=())


def logs(run: str, *, follow: bool, lines: int) -> int:
    """Print what the program of a run of this machine said; `follow` goes on until it has ended, or Ctrl-C."""
    path = on_controller.directory(run) / "log"
    path.touch()
    with path.open(errors="replace") as log, contextlib.suppress(KeyboardInterrupt):
        for line in deque(log, lines):
            typer.echo(line, nl=False)
        while follow:
            over = on_controller.at_work(run) is None
            for line in log:
                typer.echo(line, nl=False)
            if over:
                break
            time.sleep(0.5)
    return ExitCode.DONE
