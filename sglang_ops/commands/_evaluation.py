"""What the verbs of `evaluate` have in common: which deployment, where results go, playing, merging, showing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from sglang_ops import private, spec
from sglang_ops.commands import _common, _deployment, _evaluate_runs, _views
from sglang_ops.commands import _evaluation_view as view
from sglang_ops.commands._evaluation_place import Place
from sglang_ops.errors import ExitCode, UsageError
from sglang_ops.evaluation import on_controller, results, run_results
from sglang_ops.evaluation.run import Work
from sglang_ops.events import RunState
from sglang_ops.runs import RunFolder

NOTHING = _common.Played(RunState(), 0.0, interrupted=False)  # for what no host is asked
STATES = {"fetch": "collected", "wait": "waited", "resume": "resumed", "cancel": "cancelled", "rm": "absent"}


def chosen(source: _deployment.Source, service: str | None) -> tuple[spec.DeploymentFile, spec.Deployment]:
    """The one deployment that is meant, and its file. Raises UsageError."""
    pairs = [(file, item) for file in source.files for item in file.services]
    wanted = _common.service_unit(service) if service else None
    pairs = [pair for pair in pairs if wanted in (None, pair[1].service_name)]
    if not pairs:
        raise UsageError(f"{source.origin} has no deployment {service}.", fix="Name one that it has.")
    if len(pairs) > 1:
        names = " and ".join(item.service_name for _, item in pairs)
        raise UsageError(
            f"{source.origin} names {names}, and one is evaluated at a time.", fix="Name it with --service."
        )
    return pairs[0]


@dataclass
class Session:
    """One command on the hosts of a run."""

    target: _common.Target
    folder: RunFolder
    context: typer.Context
    place: Place
    json: bool

    def start(self, source: _deployment.Source, made: Work, *, detach: bool, check: bool, diff: bool) -> int:
        """Begin a run; unless it shall be left alone, follow it and bring its results home."""
        err = _common.stderr()
        for line in made.said:
            err.print(line, soft_wrap=True, markup=False)
        variables = {**source.variables, "sglang_ops_evaluation": {"do": "started", "work": made.variables()}}
        played = _common.play("evaluate", self.target, self.folder, variables, quiet=self.json, check=check, diff=diff)
        begun = runs_of(played)
        code = played.exit_code
        if code is ExitCode.DONE and not begun:
            raise UsageError(f"No host of the inventory has {made.job['deployment']}.", fix="Correct `hosts`, or -i.")
        for warning in warnings_of(played):
            err.print(f"Warning: {warning}", soft_wrap=True, markup=False)
        if played.interrupted:
            return self._left(made.run)
        self._same_model(made, begun, check=check)
        if code is not ExitCode.DONE or check or detach:
            return self._end(played, begun, made.run, code, brought=())
        err.print(f"Run {made.run} has begun on {', '.join(begun)}. It goes on without this command.", soft_wrap=True)
        return self._bring("waited", made.run, each=bool(made.job["repeat_on_hosts"]))

    def _same_model(self, made: Work, begun: Mapping[str, Any], *, check: bool) -> None:
        """Hosts that share items have one model and the same data, or nothing is scored. Raises UsageError, with
        nothing left behind."""
        if made.job["repeat_on_hosts"] or not (wrong := differing(begun)):
            return
        if not check:
            self._play(STATES["rm"], {"run": made.run})
        raise wrong

    def act(self, verb: str, run: str, *, check: bool) -> int:
        """What a verb does to a run that is there."""
        if verb in ("wait", "fetch", "resume"):
            self.place.check(new=False)
        if verb in ("wait", "fetch"):
            return self._bring(STATES[verb], run)
        shards = self._missing(run) if verb == "resume" else {}
        played = self._play(STATES[verb], {"run": run, "shards": shards}, check=check)
        found = runs_of(played)
        if verb == "resume" and found and not check and not played.interrupted:
            return self._bring("waited", run)
        return self._end(played, found, run, played.exit_code, brought=())

    def listing(self, run: str | None) -> int:
        here = on_controller.rows(run)
        played = NOTHING if run and here else self._play("listed", {"run": run or ""})
        rows = [*here] + [
            {"host": host.name, **one}
            for host in played.state.hosts.values()
            for one in host.result("evaluation").get("runs") or []
        ]
        if run and not rows and played.exit_code is ExitCode.DONE:
            raise UsageError(f"No host has a run {run}.", fix="`sglang-ops evaluate ls` lists the runs.")
        _common.keep(self.folder, {"exit_code": int(played.exit_code)}, hosts=len(played.state.hosts), seconds=0)
        if self.json:
            code = played.exit_code
            _common.print_json({"ok": code is ExitCode.DONE, "exit_code": int(code), "runs": rows})
        else:
            view.show_runs(rows)
        _views.failures(_common.stderr(), played.state.failures, self.folder, self.target, _common.again(self.context))
        return played.exit_code

    def _play(self, do: str, work: Mapping[str, Any], *, check: bool = False, fetch: str = "") -> _common.Played:
        told = {"do": do, "work": dict(work), "fetch": fetch}
        quiet = self.json or do == "listed"
        return _common.play(
            "evaluate", self.target, self.folder, {"sglang_ops_evaluation": told}, quiet=quiet, check=check
        )

    def _missing(self, run: str) -> dict[str, list[list[int]]]:
        """Shares of hosts that do not answer, or that the run never reached, given to those that have it:
        {host: [[index, count], …]}."""
        played = self._play("listed", {"run": run})
        alive = runs_of(played)
        held = {tuple(share) for one in alive.values() for share in one["shards"]}
        counts = {count for _, count in held}
        without = [host for host in played.state.hosts if host not in alive]
        if len(counts) != 1 or not (played.state.failures or without):
            return {}
        (count,) = counts
        lost = [[index, count] for index in range(count) if (index, count) not in held]
        hosts = sorted(alive)
        return {host: lost[place :: len(hosts)] for place, host in enumerate(hosts) if lost[place :: len(hosts)]}

    def _bring(self, do: str, run: str, *, each: bool = False) -> int:
        with private.directory() as folder:
            played = self._play(do, {"run": run}, fetch=str(folder))
            found = runs_of(played)
            if played.interrupted:
                return self._left(run)
            if not found and played.exit_code is ExitCode.DONE:
                raise UsageError(f"No host has a run {run}.", fix="`sglang-ops evaluate ls` lists the runs.")
            parts = [
                run_results.Part(
                    host, run_results.unpack(folder / f"{host}.tar.gz", folder / host),
                    str(one["state"]), str(one.get("why") or ""),
                )
                for host, one in found.items()
                if (folder / f"{host}.tar.gz").exists()
            ]  # fmt: skip
            lost = {failure.host: failure.cause for failure in played.state.failures}
            if each or any(part.read("job.json").get("repeat_on_hosts") for part in parts):
                brought = {self.place.of_host(part.host): [part] for part in parts}  # however many came
                lost = {}
            else:
                brought = {self.place.folder: parts} if parts else {}
            for place, theirs in brought.items():
                run_results.assemble(place, place.name, theirs, lost)
        code = played.exit_code
        states = {str(one["state"]) for one in found.values()}
        if code is ExitCode.DONE and do == "waited" and states != {"done"}:
            code = ExitCode.ERROR
        return self._end(played, found, run, code, brought=list(brought))

    def _left(self, run: str) -> int:
        """Ctrl-C: nothing is said of the hosts that is not known."""
        _common.keep(self.folder, {"ok": False, "exit_code": 130, "run": run}, hosts=0, seconds=0)
        _common.stderr().print("\nStopped watching. The run goes on where it has begun.")
        _views.following([self._command("wait", run), self._command("status", run)], _common.stderr())
        return ExitCode.INTERRUPTED

    def _end(
        self, played: _common.Played, found: Mapping[str, Any], run: str, code: ExitCode,
        brought: Sequence[Path] | None = None,
    ) -> int:  # fmt: skip
        """Show and keep how it ended: results where this command `brought` some, else the state.

        None stands for the run's own folder, if it is there.
        """
        states = {str(one["state"]) for one in found.values()}
        if brought is None:
            brought = [self.place.folder] if self.place.folder.is_dir() and states != {"removed"} else []
        folders, merged = list(brought), self.place.folder in brought
        read = [results.read(folder) for folder in folders]
        tasks = [task.result for one in read for task in one.tasks]
        groups = [group for one in read for group in one.info.groups]
        incomplete = any(not one.info.complete for one in read) and not states & {"running", "starting", "checking"}
        if code is ExitCode.DONE and (incomplete or states & {"failed", "stalled", "replaced", "refused"}):
            code = ExitCode.ERROR
        if code is ExitCode.UNREACHABLE and merged and tasks and not incomplete:
            code = ExitCode.DONE  # others have asked what a lost host had not
        data = {
            "ok": code is ExitCode.DONE,
            "exit_code": int(code),
            "run": run,
            "output_dir": str(self.place.folder if merged or not folders else self.place.directory),
            "states": {host: one["state"] for host, one in found.items()},
            "tasks": [view.summary(task) for task in tasks],
            **({"groups": [view.group(one) for one in groups]} if groups else {}),
        }
        _common.keep(self.folder, data, hosts=len(played.state.hosts), seconds=played.seconds)
        err = _common.stderr()
        if self.json:
            _common.print_json(data)
        else:
            for host, text in played.state.diffs:
                _common.stdout().print(f"--- {host}\n{text}", markup=False, soft_wrap=True)
            if tasks:
                _common.stdout().print(_evaluate_runs.scores(tasks))
                view.show_groups(groups)
            else:
                view.show_runs([{"host": host, **one} for host, one in found.items()])
        _views.failures(err, played.state.failures, self.folder, self.target, _common.again(self.context))
        for host, one in found.items():
            if one["state"] in ("failed", "stalled", "replaced", "refused"):
                was = "was" if one["state"] in ("replaced", "refused") else "has"
                why = one.get("why") or " ".join(one.get("problems") or []) or "see its log"
                err.print(f"{host}: the run {was} {one['state']}: {why}", soft_wrap=True, markup=False)
        if not self.json:
            self._advise(run, states, folders)
        return code

    def _advise(self, run: str, states: set[str], folders: Sequence[Path]) -> None:
        err = _common.stderr()
        if folders:
            err.print(f"Results: {', '.join(map(str, folders))}", soft_wrap=True)
        if states & {"running", "starting", "checking"}:
            _views.following([self._command("wait", run), self._command("status", run)], err)
        elif states & {"failed", "stalled", "stopped", "cancelled", "refused"}:
            _views.following([self._command("resume", run), self._command("logs", run)], err)

    def _command(self, verb: str, run: str) -> str:
        return self.target.command(f"evaluate {verb}", *self.place.words(verb), run)


def runs_of(played: _common.Played) -> dict[str, Any]:
    """The run on each host that has it, as the last answer told."""
    return {
        host.name: one
        for host in played.state.hosts.values()
        for one in (host.result("evaluation").get("runs") or [])[:1]
    }


def differing(begun: Mapping[str, Any]) -> UsageError | None:
    """In what the hosts are not alike, as they have said when a run began."""
    models = {host: view.model(one["model"]) for host, one in begun.items() if one.get("model")}
    if len(set(models.values())) > 1:
        told = ", ".join(f"{host} serves {model}" for host, model in sorted(models.items()))
        fix = "Deploy one to all of them, or compare them with --each."
        return UsageError(f"The hosts do not serve one model: {told}.", fix=fix)
    for task in dict.fromkeys(name for one in begun.values() for name in one.get("data") or {}):
        data = {host: one["data"][task][:12] for host, one in begun.items() if task in (one.get("data") or {})}
        if len(set(data.values())) > 1:
            told = ", ".join(f"{host} has {sha256}" for host, sha256 in sorted(data.items()))
            fix = "Put the same revision on all of them, or give dataset_dir beside the deployment file."
            return UsageError(f"{task}: the hosts do not have the same data: {told} (SHA-256).", fix=fix)
    return None


def warnings_of(played: _common.Played) -> list[str]:
    told = [text for host in played.state.hosts.values() for text in host.result("evaluation").get("warnings") or []]
    return list(dict.fromkeys(told))
