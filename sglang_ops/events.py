"""From Ansible's event stream to what happened on each host. No input, no output, no clock: the same events give
the same state.

Own modules and action plugins return a ``sglang_ops`` key with a ``kind``; everything here keys on that and on the
module's name, never on the wording of a task.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sglang_ops import causes
from sglang_ops.errors import ExitCode, LockedError, OpsError, UsageError

Event = Mapping[str, Any]

# These run on the controller; every other action is one module execution on the host.
CONTROLLER_ACTIONS = frozenset({"sglang_together"}) | frozenset(
    f"ansible.builtin.{name}"
    for name in (
        "add_host",
        "assert",
        "debug",
        "fail",
        "group_by",
        "import_playbook",
        "import_role",
        "import_tasks",
        "include_role",
        "include_tasks",
        "include_vars",
        "meta",
        "pause",
        "set_fact",
        "set_stats",
        "validate_argument_spec",
    )
)
# By the module, else by the role that a task belongs to; modules are called as their roles.
STEPS = {"container_engine": "engine", "nvidia_driver": "driver", "hf_cache": "cache", "reboot": "reboot"}
HINTS = {code.value: code for code in ExitCode}
# Who loses where several hosts ended differently: the state that needs a person most comes first. "Refused" and
# "locked" promise that nothing was touched, so they hold only if they are all there is.
SEVERITY = (
    ExitCode.NEEDS_HANDS,
    ExitCode.UNREACHABLE,
    ExitCode.ROLLED_BACK,
    ExitCode.ERROR,
    ExitCode.LOCKED,
    ExitCode.REFUSED,
)


@dataclass(frozen=True)
class Failure:
    """Why a host dropped out. `log` is the tail of the container's log where there is one."""

    host: str
    step: str
    cause: str
    exit_code: ExitCode
    log: tuple[str, ...] = ()


@dataclass
class HostState:
    """One host as far as the events tell. Times are seconds since the epoch."""

    name: str
    step: str = ""
    detail: str = ""
    started: float = 0.0
    updated: float = 0.0
    step_started: float = 0.0
    changed: int = 0
    executions: int = 0
    steps: list[str] = field(default_factory=list)
    results: dict[str, list[Mapping[str, Any]]] = field(default_factory=dict)
    failure: Failure | None = None

    @property
    def seconds(self) -> float:
        return max(0.0, self.updated - self.started)

    def result(self, kind: str) -> Mapping[str, Any]:
        """The last result of a kind, empty if there was none."""
        return self.results.get(kind, [{}])[-1]

    def enter(self, step: str, now: float, detail: str = "") -> None:
        if step and step != self.step:
            self.step, self.step_started = step, now
            if step not in self.steps:
                self.steps.append(step)
            self.detail = ""
        if detail:
            self.detail = detail


@dataclass
class RunState:
    """A whole run. Feed it every event with `apply` and every progress line with `note`."""

    service_step: str = "start"  # what the module sglang_service does in this run
    check: bool = False  # what counts as changed then only would be
    hosts: dict[str, HostState] = field(default_factory=dict)
    started: bool = False
    finished: bool = False
    no_hosts: bool = False
    lost: str = ""  # why this run does not have the lock of a host any more
    messages: list[str] = field(default_factory=list)
    diffs: list[tuple[str, str]] = field(default_factory=list)

    def apply(self, event: Event) -> None:
        """Take in one event. Raises UsageError where the command line or the inventory is at fault."""
        name = str(event.get("event", ""))
        data = event.get("event_data") or {}
        if name == "playbook_on_start":
            self.started = True
        elif name == "playbook_on_no_hosts_matched":
            self.no_hosts = True
        elif name == "playbook_on_stats":
            self._finish(data)
        elif name in ("verbose", "warning", "system_warning", "error"):
            self._message(str(event.get("stdout", "")))
        elif name == "runner_on_file_diff":
            self.diffs.append((str(data["host"]), str(event.get("stdout", "")).strip("\n")))
        elif name.startswith(("runner_on_", "runner_item_on_", "runner_retry")) and data.get("host"):
            self._on_host(name, data, _timestamp(str(event.get("created", ""))))

    def note(self, line: Mapping[str, Any], now: float) -> None:
        """One line of the progress file: {"host", "step", "detail"}."""
        host = self._host(str(line["host"]), now)
        step = str(line.get("step", ""))
        self.lost = f"the lock of {host.name} was lost: {line['lost']}." if "lost" in line else self.lost
        if step == host.step or step not in host.steps:  # a line of a step that is over came late
            host.enter(step, now, str(line.get("detail", "")))

    @property
    def failures(self) -> list[Failure]:
        return [host.failure for host in self.hosts.values() if host.failure]

    def exit_code(self) -> ExitCode:
        """How the run ended, from what the hosts reported; Ansible's own code cannot tell."""
        codes = {failure.exit_code for failure in self.failures}
        return next((code for code in SEVERITY if code in codes), ExitCode.DONE)

    def require_hosts(self, limit: str | None) -> None:
        """Raise unless the run really happened: Ansible returns 0 for "no hosts matched"."""
        if self.lost:
            raise LockedError(self.lost, fix="See who is at work: sglang-ops lock status")
        if (self.no_hosts or self.finished) and not self.hosts:  # a later play may well have no hosts
            raise UsageError("No hosts matched: the inventory holds no host for this playbook.", fix=_FIX_INVENTORY)
        if not self.finished:
            raise _no_run(self.messages, limit)

    def _message(self, text: str) -> None:
        if self.started:
            return
        self.messages.append(text)
        if _UNMATCHED in text:
            pattern = text.rpartition(_UNMATCHED)[2].strip()
            raise UsageError(f"No host in the inventory matches '{pattern}'.", fix="Correct --limit.")

    def _host(self, name: str, now: float) -> HostState:
        if name not in self.hosts:
            self.hosts[name] = HostState(name, started=now, updated=now)
        return self.hosts[name]

    def _on_host(self, name: str, data: Mapping[str, Any], now: float) -> None:
        host = self._host(str(data["host"]), now)
        host.updated = now
        result: Mapping[str, Any] = data.get("res") or {}
        if name in ("runner_on_start", "runner_retry"):
            host.enter(self._step(data), now, _retry_detail(result))
        if name not in ("runner_on_start", "runner_on_skipped", "runner_item_on_skipped"):
            host.executions += _executions(name, data, result)
        own = _own_results(result)
        if name in ("runner_on_ok", "runner_on_failed"):
            host.changed += bool(result.get("changed"))
            for item in own:
                changed = bool(item.get("changed", result.get("changed")))
                host.results.setdefault(str(item["kind"]), []).append({**item, "changed": changed})
                host.enter("", now, str(item.get("detail", "")))
        if name == "runner_on_failed" and not data.get("ignore_errors"):
            touched = bool(host.changed) and not self.check
            host.failure = _failure(host, self._step(data), data, result, own, touched=touched)
        if name == "runner_on_unreachable":
            cause = causes.unreachable(result, str(data.get("remote_addr") or host.name))
            host.failure = Failure(host.name, host.step or "connect", cause, ExitCode.UNREACHABLE)

    def _step(self, data: Mapping[str, Any]) -> str:
        """The step that a task belongs to; empty where neither its module nor its role tells."""
        action = str(data.get("resolved_action") or data.get("task_action") or "").rpartition(".")[2]
        if action == "sglang_service":
            return self.service_step
        if action in ("group_by", "sglang_together"):  # work of the controller, within another step
            return ""
        if action.startswith("sglang_"):
            return action.removeprefix("sglang_")
        return STEPS.get(action) or STEPS.get(str(data.get("role", "")), "")

    def _finish(self, stats: Mapping[str, Any]) -> None:
        """The end of a play corrects what single events cannot tell: hidden results and swallowed failures."""
        self.finished = True
        for name in stats.get("processed") or {}:
            host = self._host(name, 0.0)
            host.changed = max(host.changed, int((stats.get("changed") or {}).get(name, 0)))
            if not host.failure and any(name in (stats.get(key) or {}) for key in ("failures", "dark", "rescued")):
                host.failure = Failure(name, host.step, "a task failed", ExitCode.ERROR)


_UNMATCHED = "Could not match supplied host pattern, ignoring:"
_FIX_INVENTORY = "List hosts in the inventory, or check --limit."


def _timestamp(created: str) -> float:
    return datetime.fromisoformat(created).timestamp() if created else 0.0


def _retry_detail(result: Mapping[str, Any]) -> str:
    attempts, retries = result.get("attempts"), result.get("retries")
    return f"attempt {attempts} of {retries}" if attempts and retries else ""


def _executions(name: str, data: Mapping[str, Any], result: Mapping[str, Any]) -> int:
    """Module executions on the host behind one event. Of a loop the items count, not the event that sums up."""
    action = str(data.get("resolved_action") or data.get("task_action") or "")
    if action in CONTROLLER_ACTIONS or (name in ("runner_on_ok", "runner_on_failed") and "results" in result):
        return 0
    own = _own_results(result)
    return sum(int(item.get("executions", 1)) for item in own) if own else 1


def _own_results(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    items = result.get("results")
    candidates = [result, *(items if isinstance(items, list) else [])]
    found = [item.get("sglang_ops") for item in candidates if isinstance(item, Mapping)]
    return [item for item in found if isinstance(item, Mapping) and "kind" in item]


def _failure(
    host: HostState,
    step: str,
    data: Mapping[str, Any],
    result: Mapping[str, Any],
    own: list[Mapping[str, Any]],
    *,
    touched: bool,
) -> Failure:
    if host.failure and not own:
        return host.failure  # the `fail` that ends a rescue says less than what it rescued
    told = [service for item in own for service in item.get("services") or []]
    services = [service for service in told if isinstance(service, Mapping)]  # the driver's are names alone
    broken: Mapping[str, Any] = next((service for service in services if service.get("ok") is False), {})
    hint = next((item["exit_hint"] for item in own if "exit_hint" in item), result.get("exit_hint"))
    code = HINTS.get(hint, ExitCode.ERROR) if hint is not None else ExitCode.ERROR
    if hint is None and broken:
        code = ExitCode.ROLLED_BACK if broken.get("rolled_back_to") else ExitCode.NEEDS_HANDS
    refusals = [error["message"] for item in own for error in (item.get("plan") or {}).get("errors") or []]
    locked_out = causes.no_access(result, host.name)
    if locked_out:
        code = ExitCode.REFUSED
    if code is ExitCode.REFUSED and touched:
        code = ExitCode.ERROR  # an earlier step has changed the host, and "refused" promises that nothing has
    cause = "\n".join(refusals) or locked_out or causes.failure(result)
    if host.failure and own and own[0]["kind"] == "gateway" and code is ExitCode.NEEDS_HANDS:
        cause = f"{host.failure.cause} It did not join its gateway again: {cause}"  # what failed first is the reason
    if host.failure and own and own[0]["kind"] == "gate":
        step = host.failure.step  # what serves after going back is told by the gate, whatever failed
    where = step or host.step or str(data.get("task", ""))
    return Failure(host.name, where, cause, code, tuple(str(line) for line in broken.get("log") or ()))


def _no_run(messages: list[str], limit: str | None) -> OpsError:
    """Ansible ended before it played anything: say why in one sentence. Wordings of ansible-core 2.18 to 2.21."""
    text = "\n".join(messages)
    if "leaves us with no hosts to target" in text:
        return UsageError(f"No host in the inventory matches '{limit}'.", fix="Correct --limit.")
    if "Completely failed to parse inventory source" in text:
        source = text.rpartition("Completely failed to parse inventory source")[2].split()[0]
        plugin = "yaml" if source.endswith((".yml", ".yaml", ".json")) else "ini"
        reason = _said(messages, rf"Failed to parse .+ with '?{plugin}'? plugin: (.*)")
        return UsageError(
            f"The inventory {source} cannot be read: {reason}",
            fix="See what Ansible makes of it: ansible-inventory -i FILE --list",
        )
    reason = _said(messages, r"^(?:\[ERROR\]:|ERROR!) (.*)")
    return OpsError(reason or "Ansible ended before it began. " + " ".join(messages[-3:]).strip())


def _said(messages: list[str], pattern: str) -> str:
    """The group of `pattern` in the first message that has it. Older versions fold messages at 79 columns."""
    unfolded: list[str] = [""]
    for line in messages:
        if not line.strip() or line.startswith(("[WARNING]", "[ERROR]", "ERROR!")):
            unfolded.append("")
        unfolded[-1] = f"{unfolded[-1]} {line.strip()}".strip()
    found = (re.search(pattern, message) for message in unfolded)
    return next((match.group(1) for match in found if match), "")
