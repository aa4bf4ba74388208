"""How many hosts at a time, when it stops, whether it is the same as before: sglang_ops/rollout*.py, rolled.py."""

from __future__ import annotations

from typing import Any

import pytest

from sglang_ops import registered, rollout, rollout_run, rollouts
from sglang_ops.errors import ExitCode, PreflightError
from sglang_ops.events import Failure, HostState, RunState
from sglang_ops.planning import HostFacts, ResolvedImage, Settings, Wanted
from sglang_ops.rolled import Rolled
from sglang_ops.rollout_run import RunRollout
from sglang_ops.spec import Deployment, Rollout, SpecErrors, load_mapping

MODEL = {"served_model_name": "m", "hf_model_handle": "org/m"}


@pytest.mark.parametrize(
    ("hosts", "canary", "batch", "serving", "sizes"),
    [
        (40, None, None, True, [1, 10, 10, 10, 9]),
        (40, None, None, False, [40]),
        (40, 2, None, False, [2, 10, 10, 10, 8]),
        (40, None, "50%", False, [1, 20, 19]),
        (40, 0, "50%", True, [20, 20]),
        (3, None, None, True, [1, 1, 1]),
        (3, 1, "100%", True, [1, 2]),
        (1, None, None, True, [1]),
        (2, 5, None, True, [2]),
        (10, 0, 4, True, [4, 4, 2]),
        (0, None, None, True, []),
    ],
)
def test_one_host_first_then_a_quarter_at_a_time(
    hosts: int, canary: int | None, batch: int | str | None, serving: bool, sizes: list[int]
) -> None:
    assert rollout.batch_sizes(hosts, canary, batch, serving=serving) == sizes
    assert sum(sizes) == hosts


@pytest.mark.parametrize(
    ("failed", "had_turn", "canary", "max_failures", "ends"),
    [
        (0, 1, 1, 0, False),
        (1, 1, 1, 5, True),  # the canary's failure is one too many, whatever is bearable later
        (1, 11, 1, 0, True),
        (1, 11, 1, 1, False),
        (2, 11, 1, 1, True),
        (1, 4, 0, 1, False),  # no canary: the first batch is like the others
        (1, 4, 0, 0, True),
    ],
)
def test_when_no_further_batch_begins(failed: int, had_turn: int, canary: int, max_failures: int, ends: bool) -> None:
    assert rollout.stops(failed, had_turn, canary, max_failures) is ends


def hostvars(action: str, names: list[str], turned: tuple[str, ...] = (), **settings: Any) -> dict[str, dict[str, Any]]:
    plan = {"services": [{"action": action}], "rollout": settings}
    result = {"sglang_ops": {"kind": "plan", "plan": plan}}
    return {
        name: {registered.RESULT: result} | ({rollout.TURN: {"sglang_ops": {"paused": None}}} if name in turned else {})
        for name in names
    }


def test_hosts_of_a_play_as_ansible_tells_of_them() -> None:
    names = [f"h{number}" for number in range(8)]
    assert rollout.sizes_for(names, hostvars("restart", names)) == [1, 2, 2, 2, 1]
    assert rollout.sizes_for(names, hostvars("start", names)) == [8]
    assert rollout.sizes_for([], {}) == []
    assert not rollout.stops_for(names, names, hostvars("restart", names))
    assert rollout.stops_for(names, names[1:], hostvars("restart", names, ("h0",), max_failures=3))
    assert not rollout.stops_for(names, names[1:], hostvars("restart", names, ("h0", "h1", "h2"), max_failures=1))
    failed = hostvars("restart", names, ("h0", "h1"), max_failures=1)
    failed["h1"][rollout.FAILED] = "it crashed"
    assert not rollout.stops_for(names, names, failed), "one may fail, though it was all of its batch"
    failed["h0"][rollout.FAILED] = "it crashed"
    assert rollout.stops_for(names, names, failed)
    assert rollout.turns_before(names, names[:1], hostvars("restart", names, ("h0",))) == 0
    assert rollout.turns_before(names, names[1:3], hostvars("restart", names, ("h0", "h1", "h2"))) == 1


def in_pairs(names: list[str], variables: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The hosts, two and two of which serve a model together."""
    made = {}
    for position, name in enumerate(names):
        plan = variables[name][registered.RESULT]["sglang_ops"]["plan"]
        pair = names[position // 2 * 2 :][:2]
        services = [{**plan["services"][0], "name": "sglang-big", "group": pair}]
        result = {"sglang_ops": {"kind": "plan", "plan": {**plan, "services": services}}}
        made[name] = {**variables[name], registered.RESULT: result}
    return made


def test_hosts_that_serve_a_model_together_change_together() -> None:
    names = [f"h{number}" for number in range(8)]
    pairs = in_pairs(names, hostvars("restart", names, order="shuffle"))
    assert rollout.sizes_for(names, pairs) == [2, 2, 2, 2]
    assert rollout.sizes_for(names[:3], pairs) == [2, 1]
    assert rollout.sizes_back(names, "50%", pairs) == [4, 4]
    two = in_pairs(names, hostvars("restart", names, ("h0", "h1"), max_failures=3))
    assert rollout.stops_for(names, names[1:], two), "the canary is a pair"
    four = in_pairs(names, hostvars("restart", names, ("h0", "h1", "h2", "h3"), max_failures=1))
    assert not rollout.stops_for(names, names[2:], four), "two hosts that failed together count as one"


@pytest.mark.parametrize(
    ("order", "hosts", "pairs"),
    [
        ("inventory", ["c", "a", "d", "b"], ["c", "a", "d", "b"]),
        ("reverse_inventory", ["b", "d", "a", "c"], ["d", "b", "c", "a"]),
        ("sorted", ["a", "b", "c", "d"], ["c", "a", "d", "b"]),
        ("reverse_sorted", ["d", "c", "b", "a"], ["d", "b", "c", "a"]),
    ],
)
def test_the_order_is_that_of_hosts_or_of_groups(order: str, hosts: list[str], pairs: list[str]) -> None:
    names = ["c", "a", "d", "b"]
    alone = hostvars("restart", names, order=order)
    changing = sorted(names)  # as they happened to be planned
    assert rollout.in_turn([*names, "gw"], changing, alone) == hosts
    assert rollout.in_turn([*names, "gw"], changing, in_pairs(names, alone)) == pairs
    assert rollout.in_turn(names, [], alone) == []


def test_a_shuffled_roll_out_is_shuffled_once() -> None:
    names = [f"h{number}" for number in range(40)]
    one, other = (hostvars("restart", names, order="shuffle", change={"rollout": run}) for run in "ab")
    assert rollout.in_turn(names, names, one) == rollout.in_turn(names, names, one)
    assert sorted(rollout.in_turn(names, names, one)) == sorted(names)
    assert len({tuple(rollout.in_turn(names, names, known)) for known in (one, other)} | {tuple(names)}) == 3
    paired = rollout.in_turn(names, names, in_pairs(names, one))
    assert all(int(first[1:]) + 1 == int(second[1:]) for first, second in zip(paired[::2], paired[1::2], strict=True))


def test_what_goes_back_on_a_host_that_failed() -> None:
    rows = [("a", "restart", "r"), ("b", "restart", "r"), ("c", "check", "r"), ("d", "check", "old")]
    services = [{"name": n, "action": action, "release": "r", "deployed_stable": s} for n, action, s in rows]
    assert [item["name"] for item in rollout.returning(services, ["b"])] == ["a", "d"]


def test_batches_in_words() -> None:
    assert rollout.summed_up([1, 10, 10, 10, 9]) == "1, then 3 × 10, then 9"
    assert rollout.summed_up([40]) == ""


def test_a_mark_on_one_host_pauses_all() -> None:
    names = ["a", "b"]
    variables = hostvars("restart", names)
    assert not rollout.paused_for(names, variables)
    for register in (rollout.BEGUN, rollout.TURN, rollout.GATE):
        marked = {**variables, "b": {**variables["b"], register: {"sglang_ops": {"paused": {"who": "x"}}}}}
        assert rollout.paused_for(names, marked)


def test_settings_of_files_and_flags() -> None:
    one, two = Rollout(canary=2, order="sorted"), Rollout(canary=3)
    merged = rollout.merged([one, two], {"batch": "50%"})
    assert (merged.canary, merged.order, merged.batch) == (3, "sorted", "50%")


@pytest.mark.parametrize("value", [1, "7", "1%", "25%", "100%"])
def test_shares_and_numbers_of_hosts(value: object) -> None:
    file = load_mapping({"deployment": MODEL, "rollout": {"batch": value}}, "test")
    assert file.rollout.batch == (7 if value == "7" else value)


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"batch": 0}, "rollout.batch: 0 is no number of hosts"),
        ({"batch": "130%"}, "rollout.batch: 130% is no number of hosts"),
        ({"batch": "1,25%"}, "rollout.batch"),
        ({"canary": -1}, "rollout.canary: must be greater than or equal to 0, found -1"),
        ({"soak": -5}, "rollout.soak"),
        ({"start_timeout": 0}, "rollout.start_timeout"),
        ({"drain_timeout": -1}, "rollout.drain_timeout"),
        ({"max_failures": "some"}, "rollout.max_failures"),
        ({"order": "random"}, "rollout.order"),
        ({"gate": {"prompt": "2+2?", "expect": "("}}, "rollout.gate.expect: '(' is no regular expression"),
        ({"gate": {"policies": "p.yaml"}}, "rollout.gate.policies"),
        ({"gate": {"prompt": "2+2?"}}, "rollout.gate: has no expect"),
        ({"gate": {"limit_samples": 4}}, "rollout.gate: has no prompt"),
        ({"gate": {"policy": "p", "prompt": "2+2?", "expect": "4"}}, "rollout.gate: has policy and prompt"),
        ({"gate": {"tasks": ["a"], "prompt": "2+2?", "expect": "4"}}, "rollout.gate: has tasks without policy"),
        ({"cannary": 1}, "rollout.cannary"),
    ],
)
def test_what_cannot_be_is_refused_in_the_file(section: dict[str, Any], says: str) -> None:
    with pytest.raises(SpecErrors) as caught:
        load_mapping({"deployment": MODEL, "rollout": section}, "test")
    assert any(says in f"{item.path}: {item.message}" for item in caught.value.errors)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"batch": "0"}, "--batch: 0 is no number of hosts."),
        ({"canary": -1}, "--canary: must be greater than or equal to 0, found -1."),
        ({"drain_timeout": -3}, "--drain-timeout: must be greater than or equal to 1, found -3."),
        ({"order": "zigzag"}, "--order: must be 'inventory'"),
    ],
)
def test_what_cannot_be_is_refused_as_a_flag(given: dict[str, Any], says: str) -> None:
    with pytest.raises(PreflightError) as caught:
        rollout_run.checked(given)
    assert str(caught.value).startswith(says)


def test_flags_that_are_kept_are_typed_again_as_they_were() -> None:
    given = rollout_run.flags(batch="2", canary=0, rollback=False, surge=True, soak=60, order=None)
    assert given == {"batch": 2, "canary": 0, "soak": 60, "auto_rollback": False, "surge": "auto"}
    words = rollout_run.typed(given)
    assert " ".join(words) == "--canary 0 --batch 2 --soak 60 --no-rollback --surge"
    assert rollout_run.typed(rollout_run.flags(batch="50%", rollback=True, surge=False)) == [
        "--batch", "50%", "--rollback", "--no-surge",
    ]  # fmt: skip


def run_of(section: dict[str, Any], **given: Any) -> RunRollout:
    return RunRollout.of([load_mapping({"deployment": MODEL, "rollout": section}, "test")], {"run": "r", **given})


def test_a_canary_larger_than_the_fleet_is_refused() -> None:
    run_of({"canary": 3}).check_size([["a"], ["b"], ["c"]])
    with pytest.raises(PreflightError, match=r"rollout.canary is 4, and there are 3 hosts\."):
        run_of({}, options={"canary": 4}).check_size([["a"], ["b"], ["c"]])


def test_hosts_that_serve_a_model_together_count_as_one_for_the_canary() -> None:
    pairs = [["a", "b"], ["c", "d"]]
    run_of({"canary": 2}).check_size(pairs)
    with pytest.raises(PreflightError, match=r"canary is 3, and there are 4 hosts, which count as 2: those"):
        run_of({"canary": 3}).check_size(pairs)


def test_times_of_the_file_win_over_the_roles_variables() -> None:
    settings = Settings(start_timeout=1800, soak=5, drain_timeout=300)
    assert run_of({}).timeouts == {}
    assert run_of({}).of_host([], [], settings, facts(None))["drain_timeout"] == 300
    run = run_of({"start_timeout": 60, "soak": 0, "drain_timeout": 9}, options={"soak": 2})
    assert run.timeouts == {"start_timeout": 60, "soak": 2}
    assert run.of_host([], [], settings, facts(None))["drain_timeout"] == 9


def test_who_resumes_after_the_canary_has_judged_it() -> None:
    gate = {"gate": {"prompt": "2+2?", "expect": "4"}}
    assert run_of(gate).of_host([], [], Settings(), facts(None))["gate"]["prompt"] == "2+2?"
    assert run_of(gate, resume=True).of_host([], [], Settings(), facts(None))["gate"]["prompt"] == "2+2?"
    assert run_of(gate, resume=True, judged=True).of_host([], [], Settings(), facts(None))["gate"] == {}


def deployment(**keys: Any) -> Deployment:
    return load_mapping({"deployment": MODEL | keys}, "test").deployment


def facts(record: dict[str, Any] | None) -> HostFacts:
    service = {"name": "sglang-m", "release": "a" * 12, "rollout": record}
    return HostFacts.model_validate({"host": "h", "address": "h", "services": [service]})


def test_a_file_that_has_changed_is_refused_and_the_change_is_named() -> None:
    before = rollout.described(deployment(env_vars={"API_KEY": "topsecret1"}))
    assert "topsecret1" not in str(before)
    paused, resumed = facts({"file": before}), run_of({}, resume=True)
    assert resumed.changed([deployment(env_vars={"API_KEY": "topsecret1"})], paused) == []
    told = resumed.changed([deployment(port=9000, env_vars={"API_KEY": "topsecret2"})], paused)
    assert "port 8000 → 9000" in told[0]
    assert "env_vars.API_KEY secret" in told[0]
    assert "topsecret2" not in told[0]
    assert run_of({}).changed([deployment(port=9000)], paused) == []  # a new deploy may change what it likes
    assert resumed.changed([deployment(port=9000)], facts(None)) == []


def test_secrets_among_the_arguments_are_marks() -> None:
    arguments = "--api-key hunter22 --admin-api-key=hunter33"
    shown = rollout.described(deployment(extra_args=arguments))
    assert "hunter22" not in str(shown)
    assert "hunter33" not in str(shown)


def state_of(*hosts: HostState) -> RunState:
    return RunState(hosts={host.name: host for host in hosts}, started=True, finished=True)


def host_of(name: str, batch: str = "", *, code: ExitCode | None = None, paused: Any = None) -> HostState:
    planned = {"kind": "plan", "plan": {"services": [{"name": "sglang-m", "action": "restart"}]}}
    host = HostState(name, results={"plan": [planned]})
    if batch:
        host.results["turn"] = [{"kind": "turn", "batch": batch, "paused": paused}]
    if batch and not paused:
        host.results["service"] = [{"kind": "service", "services": []}]
    if code:
        host.failure = Failure(name, "gate", "broken", code)
    return host


def test_what_is_told_of_a_roll_out() -> None:
    done = Rolled.from_run(state_of(host_of("b", "1"), host_of("a", "0"), host_of("c", "1")), 9)
    assert done is not None
    assert (done.result, done.batches, done.waiting) == ("done", (("a",), ("b", "c")), ())
    failed = Rolled.from_run(state_of(host_of("a", "0", code=ExitCode.ROLLED_BACK), host_of("b")), 9)
    assert failed is not None
    assert (failed.result, failed.batches, failed.waiting) == ("rolled-back", (("a",),), ("b",))
    mark = {"who": "x", "since": 1, "why": "asked for"}
    paused = Rolled.from_run(state_of(host_of("a", "0"), host_of("b", "1", paused=mark)), 9)
    assert paused is not None
    assert (paused.result, paused.batches, paused.waiting) == ("paused", (("a",),), ("b",))
    assert Rolled.from_run(state_of(HostState("a")), 9) is None
    hands = Rolled.from_run(state_of(host_of("a", "0", code=ExitCode.NEEDS_HANDS)), 9)
    assert hands is not None
    assert hands.result == "needs-hands"


def found(name: str, *, open_one: bool, result: str = "stable", paused: Any = None) -> dict[str, Any]:
    record = {"service": "sglang-m", "id": "r1", "who": "me", "started": 0, "ref": "i:1", "image": "i@sha"}
    record |= {"paused": paused}
    change = {"time": 5, "release": name, "before": "old", "verb": "deploy", "rollout": "r1", "result": result}
    return {
        "name": "sglang-m",
        "release": "old" if open_one else name,
        "stable": "old" if open_one else name,
        "rollout": record if open_one else None,
        "history": [] if open_one else [change],
    }


def test_unfinished_roll_outs_are_put_together_from_all_hosts() -> None:
    hosts = {"a": [found("new", open_one=False)], "b": [found("new", open_one=True, paused={"who": "x", "since": 60})]}
    (one,) = rollouts.unfinished(hosts)
    assert (one.changed, one.waiting, one.failed) == (("a",), ("b",), ())
    assert one.paused["since"] == "1970-01-01T00:01:00+00:00"
    assert one.digests == {"i:1": "i@sha"}
    (failed,) = rollouts.unfinished(hosts | {"a": [found("new", open_one=False, result="failed")]})
    assert failed.failed == ("a",)
    assert rollouts.unfinished({"a": hosts["a"]}) == []
    assert [row.release for row in rollouts.running(hosts)] == ["new", "old"]
    assert rollouts.changes(hosts)[0].result == "stable"


def test_the_options_of_a_roll_out_are_kept_with_it() -> None:
    wanted = Wanted(deployment(), ResolvedImage("i:1", "i@sha256:a"))
    options = rollout_run.flags(batch="1", rollback=False, soak=60)
    changing = [{"name": "sglang-m", "action": "restart"}]
    record = run_of({}, options=options).of_host([wanted], changing, Settings(), facts(None))["records"]["sglang-m"]
    assert record["options"] == options
    looked = found("new", open_one=True)
    looked["rollout"]["options"] = record["options"]
    assert rollouts.unfinished({"a": [looked], "b": [found("new", open_one=True)]})[0].options == options


def test_a_file_goes_on_with_the_roll_outs_of_its_services_alone() -> None:
    def waits(*services: str, name: str = "r1") -> list[dict[str, Any]]:
        rows = [found("new", open_one=True) for _ in services]
        for row, service in zip(rows, services, strict=True):
            row |= {"name": service, "rollout": row["rollout"] | {"service": service, "id": name}}
        return rows

    def ids(open_ones: Any, *services: str) -> list[str]:
        return [item.id for item in rollouts.of_file(open_ones, services)]

    both = rollouts.unfinished({"a": waits("sglang-x"), "b": waits("sglang-y", name="r2")})
    assert ids(both, "sglang-x") == ["r1"]
    assert ids(both, "sglang-x", "sglang-y", "sglang-z") == ["r1", "r2"]
    with pytest.raises(PreflightError, match="is of sglang-x, sglang-y; the file has sglang-z"):
        ids(both, "sglang-z")
    together = rollouts.unfinished({"a": waits("sglang-x", "sglang-y")})
    with pytest.raises(PreflightError, match="is of sglang-y; the file has sglang-x"):
        ids(together, "sglang-x")


def told_of(image: str, **told: Any) -> dict[str, Any]:
    """What a host's variables hold once it has been planned."""
    return {registered.RESULT: {"sglang_ops": {"plan": {"rollout": {"images": {"i:latest": image}, **told}}}}}


def test_a_roll_out_that_has_not_finished_goes_on_with_the_digest_that_it_began_with() -> None:
    record = {"id": "r1", "ref": "i:latest", "image": "i@sha256:old", "started": 1}
    done, open_one = told_of("i@sha256:new"), told_of("i@sha256:new", unfinished=[record])
    fleet = {"a": done, "b": open_one, "c": {}}
    assert not rollout.moved_for(["a", "c"], fleet)
    assert rollout.moved_for(["a", "b", "c"], fleet)
    again = {name: told_of("i@sha256:old", digests={"i:latest": "i@sha256:old"}) for name in "ab"}
    assert not rollout.moved_for(["a", "b"], again)
    assert rollout.digests_of(["a", "b"], again) == {"i:latest": "i@sha256:old"}  # also when planned once more
    said = rollout.moved(open_one[registered.RESULT]["sglang_ops"]["plan"], {"i:latest": "i@sha256:old"})
    assert "goes on with the image that it began with (sha256:old). i:latest is sha256:new by now" in said[0]
    failed = fleet | {"c": told_of("i@sha256:new", failed=["r1"])}
    assert not rollout.moved_for(["a", "b", "c"], failed)  # it is over: what is fixed since shall be taken


def test_the_record_of_another_file_says_nothing_about_the_digest() -> None:
    record = {"id": "r", "ref": "i:1", "image": "i@sha256:a", "started": 1}
    wanted = Wanted(deployment(), ResolvedImage("i:1", "i@sha256:b"))

    def unfinished(file: dict[str, Any]) -> list[str]:
        told = run_of({}).of_host([wanted], [], Settings(), facts(record | {"file": file}))["unfinished"]
        return [one["image"] for one in told]

    assert unfinished(rollout.described(deployment())) == ["i@sha256:a"]
    assert unfinished(rollout.described(deployment(port=9000))) == []
