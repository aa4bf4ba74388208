"""A deploy does not pull the server from under an evaluation, unless it is told to."""

from __future__ import annotations

from situations import deployed, deployment, host, planned

from sglang_ops.planning import Settings

RUN = {"run": "nightly", "done": 120, "total": 541, "seconds_left": 480}


def test_another_release_is_refused_while_one_is_evaluated() -> None:
    first = planned(deployment(), host())
    running = RUN | {"releases": {"sglang-m": first.services[0].release}}
    facts = host(services=[deployed(first)], evaluations=[running])
    made = planned(deployment(extra_args="--log-level info"), facts)
    assert [problem.check for problem in made.errors] == ["evaluation"]
    assert "evaluation nightly of sglang-m is at work on gpu-1 (120 of 541 answered, about 8 min left)" in str(
        made.errors[0].message
    )
    assert "--interrupt-evaluations" in made.errors[0].message
    told = planned(deployment(extra_args="--log-level info"), facts, Settings(interrupt_evaluations=True))
    assert not told.errors
    assert told.services[0].action == "restart"


def test_the_same_release_disturbs_nobody() -> None:
    first = planned(deployment(), host())
    running = RUN | {"releases": {"sglang-m": first.services[0].release}}
    assert not planned(deployment(), host(services=[deployed(first)], evaluations=[running])).errors
    other = RUN | {"releases": {"sglang-other": "0123456789ab"}}
    changed = planned(deployment(port=9000), host(services=[deployed(first)], evaluations=[other]))
    assert not changed.errors
