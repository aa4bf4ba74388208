"""Models of hosts, from events to data."""

from __future__ import annotations

from typing import Any

from sglang_ops.commands._models_view import day, size
from sglang_ops.errors import ExitCode
from sglang_ops.events import Failure, HostState, RunState
from sglang_ops.held import Cached, Model, Pulled

COMMIT = "c" * 40


def state(*hosts: HostState) -> RunState:
    return RunState(hosts={host.name: host for host in hosts}, finished=True)


def host(name: str, failure: Failure | None = None, **results: Any) -> HostState:
    return HostState(name, results={kind: [result] for kind, result in results.items()}, failure=failure)


def plan(*missing: str) -> dict[str, Any]:
    services = [
        {"name": "one", "action": "start", "content": {"model": {"repo": "org/a", "commit": COMMIT}}},
        {"name": "two", "action": "none", "content": {"model": {"repo": "org/a", "commit": COMMIT}}},
        {"name": "three", "action": "none", "content": {"model": {"directory": "/data/model"}}},
    ]
    steps = [{"step": step, "subject": "x", "why": "y"} for step in ("engine", "image", "model", "start", "restart")]
    return {"plan": {"services": services, "models": [{"repo": repo} for repo in missing], "steps": steps}}


def pulled(*hosts: HostState, check: bool = False) -> Pulled:
    return Pulled.from_run(state(*hosts), run="/runs/1", seconds=1.0, check=check, interrupted=False)


def test_a_model_that_services_share_is_one_and_a_directory_is_none() -> None:
    result = pulled(host("a", plan=plan()))
    assert result.models == {"a": (Model("org/a", COMMIT, fetched=False),)}


def test_what_was_fetched_has_its_size_and_who_gave_it() -> None:
    told = {"models": [{"repo": "org/a", "bytes": 7}], "peers": {"org/a": "b"}}
    result = pulled(host("a", plan=plan("org/a"), model=told))
    assert result.models["a"] == (Model("org/a", COMMIT, fetched=True, bytes=7, giver="b", origin="b"),)
    assert result.as_dict()["hosts"][0]["models"][0]["giver"] == "b"


def test_a_pull_has_no_step_of_a_service() -> None:
    result = pulled(host("a", plan=plan("org/a")), check=True)
    assert [step["step"] for step in result.as_dict()["steps"]] == ["engine", "image", "model"]


def test_hosts_that_named_bad_files_are_told_from_those_that_failed() -> None:
    failure = Failure("a", "models", "Wrong content", ExitCode.ERROR)
    bad = [{"repo": "org/a", "files": ["x"], "why": "y"}]
    result = Cached.from_run(
        state(
            host("a", failure, models={"bad": bad, "checked_bytes": 5}),
            host("b", Failure("b", "connect", "gone", ExitCode.UNREACHABLE)),
            host("c", models={"checked_bytes": 5}),
        )
    )
    assert [failure.host for failure in result.failures] == ["b"]
    assert (result.exit_code, result.ok) == (ExitCode.UNREACHABLE, False)
    rows = {row["host"]: row for row in result.as_dict("verify")["hosts"]}
    assert (rows["a"]["bad"], rows["c"]["bad"]) == (bad, [])
    assert rows["b"]["failure"]["cause"] == "gone"


def test_what_is_freed_is_summed_by_host() -> None:
    removed = [{"repo": "org/a", "commits": [COMMIT], "bytes": 5}, {"repo": "org/b", "commits": [], "bytes": 7}]
    result = Cached.from_run(state(host("a", models={"removed": removed})), check=True)
    data = result.as_dict("prune")
    assert (data["check"], data["hosts"][0]["freed_bytes"]) == (True, 12)
    assert "check" not in result.as_dict("ls")


def test_an_interruption_is_its_own_ending() -> None:
    assert Cached.from_run(state(host("a")), interrupted=True).exit_code is ExitCode.INTERRUPTED


def test_bytes_and_days_as_people_read_them() -> None:
    assert [size(count) for count in (0, None, 300, 4_000, 412e6, 14.9e9)] == [
        "-", "-", "300 bytes", "4 kB", "412 MB", "14.9 GB"
    ]  # fmt: skip
    assert (day(0), len(day(1_790_000_000))) == ("-", 10)
