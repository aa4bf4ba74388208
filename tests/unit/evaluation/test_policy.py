from __future__ import annotations

from pathlib import Path

import pytest
from evaluation_runs import info, result, sample, write

from sglang_ops.errors import OpsError
from sglang_ops.evaluation import policy, results
from sglang_ops.evaluation.policy import Policy, PolicyError, Tier, Verdict
from sglang_ops.evaluation.results import ResultError, Run


def judged(run: Run, baseline: Run | None = None, **rule: object) -> policy.Decision:
    return policy.decide(run, baseline, Policy.model_validate({"tasks": {"gpqa_diamond": rule}}))


def run(path: Path, right: int, wrong: int, **keys: object) -> Run:
    return results.read(write(path, [1] * right + [0] * wrong, **keys))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("right", "wrong", "verdict", "code"),
    [
        (95, 5, Verdict.GO, 0),
        (70, 30, Verdict.NO_GO, 1),
        (82, 18, Verdict.INCONCLUSIVE, 2),
        (9, 0, Verdict.INCONCLUSIVE, 2),  # all right, too few to be sure
    ],
)
def test_a_minimum_is_held_against_the_interval(
    tmp_path: Path, right: int, wrong: int, verdict: Verdict, code: int
) -> None:
    found = judged(run(tmp_path / "a", right, wrong), min_score=0.8)
    assert (found.verdict, found.exit_code) == (verdict, code)
    assert [item.name for item in found.criteria] == ["max_failed", "min_score"]


def test_one_item_of_a_metric_without_bounds_decides_nothing(tmp_path: Path) -> None:
    """There is no interval to hold against a limit; a share has one even then."""
    before, after = (results.read(write(tmp_path / name, [score])) for name, score in (("a", 40.0), ("b", 45.0)))
    assert judged(after, min_score=30).verdict is Verdict.INCONCLUSIVE
    found = judged(after, before, max_drop=1)
    assert (found.verdict, "one item" in found.criteria[-1].why) == (Verdict.INCONCLUSIVE, True)
    both = results.read(write(tmp_path / "c", [45.0, 45.5]))
    assert judged(both, min_score=30).verdict is Verdict.GO


def test_confidence_one_half_judges_the_score(tmp_path: Path) -> None:
    rules = {"confidence": 0.5, "tasks": {"gpqa_diamond": {"min_score": 0.8}}}
    one = policy.decide(run(tmp_path / "a", 82, 18), None, Policy.model_validate(rules))
    other = policy.decide(run(tmp_path / "b", 79, 21), None, Policy.model_validate(rules))
    assert (one.verdict, other.verdict) == (Verdict.GO, Verdict.NO_GO)


@pytest.mark.parametrize(
    ("fallen", "limit", "verdict"),
    [(0, 0.05, Verdict.GO), (30, 0.05, Verdict.NO_GO), (8, 0.05, Verdict.INCONCLUSIVE), (8, 0.2, Verdict.GO)],
)
def test_a_drop_is_held_against_the_paired_interval(
    tmp_path: Path, fallen: int, limit: float, verdict: Verdict
) -> None:
    before, after = run(tmp_path / "a", 100, 20), run(tmp_path / "b", 100 - fallen, 20 + fallen)
    found = judged(after, before, max_drop=limit)
    assert found.verdict is verdict
    drop = found.criteria[-1]
    assert drop.value == pytest.approx(fallen / 120)
    assert drop.interval is not None
    assert drop.interval[0] <= fallen / 120 <= drop.interval[1]


@pytest.mark.parametrize(
    ("tier", "right", "verdict"),
    [
        (Tier.CRITICAL, 82, Verdict.INCONCLUSIVE),
        (Tier.SUPPORTING, 82, Verdict.GO),
        (Tier.SUPPORTING, 60, Verdict.NO_GO),
        (Tier.ADVISORY, 60, Verdict.GO),
    ],
)
def test_tiers(tmp_path: Path, tier: Tier, right: int, verdict: Verdict) -> None:
    assert judged(run(tmp_path / "a", right, 100 - right), min_score=0.8, tier=tier).verdict is verdict


def test_failed_requests_have_a_limit(tmp_path: Path) -> None:
    def failing(number: int) -> dict[str, object]:
        return {"failed": "HTTP 500", "answer": None, "scores": {}} if number < 3 else {}

    found = run(tmp_path / "a", 100, 0, change=failing)
    assert judged(found, min_score=0.5).verdict is Verdict.NO_GO
    assert judged(found, min_score=0.5).criteria[0].why == "3 of 100 requests failed (3.0%), 1.0% may"
    assert judged(found, min_score=0.5, max_failed=0.05).verdict is Verdict.GO


def test_an_incomplete_task_is_inconclusive(tmp_path: Path) -> None:
    found = run(tmp_path / "a", 95, 5, complete=False, incomplete_because="gpu-2 was lost", items=200)
    decision = judged(found, min_score=0.5)
    assert decision.verdict is Verdict.INCONCLUSIVE
    assert decision.criteria[0].why == "gpu-2 was lost"


def test_a_task_that_has_not_arrived_is_inconclusive(tmp_path: Path) -> None:
    path = write(tmp_path / "a", [1] * 100)
    results.write_info(path, info(("gpqa_diamond", "ifeval"), run="a"))
    rules = Policy.model_validate({"tasks": {"ifeval": {"min_score": 0.5}}})
    decision = policy.decide(results.read(path), None, rules)
    assert decision.verdict is Verdict.INCONCLUSIVE
    assert decision.unjudged == ("gpqa_diamond",)


def test_a_task_where_every_request_failed_is_no_go(tmp_path: Path) -> None:
    samples = [sample(n, None, failed="HTTP 500", answer=None) for n in range(5)]
    results.write_info(tmp_path / "a", info(run="a"))
    results.write_task(tmp_path / "a", result(samples, run="a"), samples)
    decision = judged(results.read(tmp_path / "a"), min_score=0.5)
    assert [item.verdict for item in decision.criteria] == [Verdict.NO_GO, Verdict.INCONCLUSIVE]
    assert decision.verdict is Verdict.NO_GO


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    found = run(tmp_path / "a", 9, 1)
    with pytest.raises(PolicyError, match="names the metric exact_mach of gpqa_diamond, which has exact_match") as one:
        judged(found, metric="exact_mach", min_score=0.5)
    assert one.value.fix == "Did you mean 'exact_match'?"
    with pytest.raises(PolicyError, match="names the task ifevl; a has gpqa_diamond"):
        policy.decide(found, None, Policy.model_validate({"tasks": {"ifevl": {"min_score": 0.5}}}))
    with pytest.raises(PolicyError, match="limits the drop of gpqa_diamond, and there is no baseline"):
        judged(found, max_drop=0.1)
    with pytest.raises(PolicyError, match="min_score 40 of gpqa_diamond, where exact_match lies between 0 and 1") as n:
        judged(found, min_score=40)
    assert n.value.fix == "Write 0.4."
    other = run(tmp_path / "b", 9, 1, dataset={"name": "x", "sha256": "c" * 64})
    with pytest.raises(ResultError, match="over different data"):
        judged(found, other, max_drop=0.1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be a YAML mapping, found nothing. Begin with `tasks:`"),
        ("tasks: {}", "tasks (line 1): Dictionary should have at least 1 item"),
        ("tasks: {a: {min_scor: 1}}", "tasks.a.min_scor (line 1): is not a key of a policy. Did you mean 'min_score'?"),
        ("task: {}", "task (line 1): is not a key of a policy. Did you mean 'tasks'?"),
        ("tasks:\n  a: {tier: high, min_score: 1}", "tasks.a.tier (line 2): must be 'critical'"),
        ("tasks:\n  a: {tier: critical}", "tasks.a (line 2): has neither min_score nor max_drop."),
        ("tasks: {a: {min_score: .5, tier: advisory}}", "are all advisory: the gate is always open."),
        ("confidence: 95\ntasks: {a: {min_score: 1}}", "confidence (line 1): must be less than 1, found 95."),
        ("tasks: {a: {max_drop: -1}}", "must be greater than or equal to 0, found -1."),
        ("tasks: {a: {max_drop: .nan}}", "must be a finite number"),
        ("tasks: [", "is not YAML"),
    ],
)
def test_mistakes_in_the_file(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(text)
    with pytest.raises(OpsError) as caught:
        policy.load(file)
    assert message in caught.value.message
    assert caught.value.exit_code == 7


def test_defaults_fill_the_gaps(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("defaults: {max_drop: 0.02, tier: supporting}\ntasks:\n  a: {}\n  b: {tier: critical}\n")
    found = policy.load(file)
    assert (found.rule("a").tier, found.rule("b").tier) == (Tier.SUPPORTING, Tier.CRITICAL)
    assert found.rule("b").max_drop == 0.02
    with pytest.raises(OpsError, match="cannot be read: No such file"):
        policy.load(tmp_path / "none.yaml")
