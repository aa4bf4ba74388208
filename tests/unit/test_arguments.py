"""Arguments are judged as SGLang's parser would, one rule at a time."""

from __future__ import annotations

import shlex
from typing import ClassVar

import pytest

from sglang_ops.catalog import catalogue, releases
from sglang_ops.planning.arguments import Judged, judge, release_of


def judged(line: str, release: str | None = "0.5.23", *, strict: bool = False) -> Judged:
    return judge(shlex.split(line), release, strict=strict)


def said(found: Judged) -> tuple[list[str], list[str]]:
    return [str(error) for error in found.errors], list(found.warnings)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "--enable-metrics --mem-fraction-static 0.85 --max-total-tokens 20k",
        "--cuda-graph-bs-decode 1 2 4 --log-level=debug --no-lora-strict-loading",
        "--lora-paths a=/x '{\"lora_name\": \"b\"}' --model-checksum --revision main",
        "--config /etc/sglang.yaml --trust-remote-code",
        "--schedule-conservativeness -1 --served-model-name '--not a flag'",
        "--preferred-sampling-params '{\"temperature\": 0}' --chat-template=",
        "--api-key 'a b' --api-key=--x",
    ],
)
def test_what_sglang_takes_stays_word_for_word(line: str) -> None:
    assert judged(line) == Judged(tuple(shlex.split(line)), judged_by="SGLang 0.5.23")


@pytest.mark.parametrize(
    ("line", "result", "warning"),
    [
        (
            "--mem-fraction 0.8",
            "--mem-fraction-static 0.8",
            "--mem-fraction becomes --mem-fraction-static: it is short for that in SGLang 0.5.23, and may not be in",
        ),
        ("--context-len=8k", "--context-length=8k", "--context-len becomes --context-length: it is short"),
        (
            "--cuda-graph-max-bs 32",
            "--cuda-graph-max-bs-decode 32",
            "--cuda-graph-max-bs becomes --cuda-graph-max-bs-decode 32: SGLang 0.5.20 no longer has it.",
        ),
        ("--cuda-graph-bs 1 2", "--cuda-graph-bs-decode 1 2", "SGLang 0.5.20 no longer has it."),
        ("--cuda-graph-max-bs=4", "--cuda-graph-max-bs-decode=4", "SGLang 0.5.20 no longer has it."),
        ("--disable-piecewise-cuda-graph", "--cuda-graph-backend-prefill disabled", "SGLang 0.5.20 no longer has it."),
        ("--nsa-prefill-cp-mode in-seq-split", "--cp-strategy zigzag", "--nsa-prefill-cp-mode becomes --cp-strategy"),
        ("--stream-output", "--incremental-streaming-output", "SGLang 0.5.20 no longer has it."),
        ("--enable-flashmla", "--attention-backend flashmla", "SGLang 0.4.7.post1 no longer has it."),
        ("--max-micro-batch-size 4", "--pp-max-micro-batch-size 4", "SGLang 0.5.3.post3 no longer has it."),
        ("--enable-metrics --collect-tokens-histogram", "--enable-metrics", "--collect-tokens-histogram is left out: "),
    ],
)
def test_what_is_rewritten_is_named(line: str, result: str, warning: str) -> None:
    found = judged(line)
    assert found.arguments == tuple(shlex.split(result))
    assert not found.errors
    assert len(found.warnings) == 1
    assert warning in found.warnings[0]
    strict = judged(line, strict=True)
    assert len(strict.errors) == 1
    assert strict.errors[0].fix.startswith(("Remove it.", f"Write {found.arguments[0].partition('=')[0]}"))
    assert not strict.warnings


@pytest.mark.parametrize("release", releases())
def test_disable_flashinfer_is_written_out_on_every_release(release: str) -> None:
    written_out = "--attention-backend triton --sampling-backend pytorch"
    found = judged("--enable-torch-compile --disable-flashinfer --tokenizer-mode slow", release)
    assert shlex.join(found.arguments) == f"--enable-torch-compile {written_out} --tokenizer-mode slow"
    assert not found.errors
    (warning,) = found.warnings
    assert warning.startswith(f"--disable-flashinfer becomes {written_out}: no release of SGLang starts with it")


@pytest.mark.parametrize(
    ("given", "result"),
    [
        ("--disable-flashinfer --attention-backend fa3", "--sampling-backend pytorch --attention-backend fa3"),
        ("--sampling-backend=x --disable-flashinfer", "--sampling-backend=x --attention-backend triton"),
        ("--attention-backend fa3 --sampling-backend pytorch --disable-flashinfer",
         "--attention-backend fa3 --sampling-backend pytorch"),
    ],
)  # fmt: skip
def test_a_backend_that_is_named_wins_over_disable_flashinfer(given: str, result: str) -> None:
    found = judged(given)
    assert found.arguments == tuple(result.split())
    assert not found.errors


@pytest.mark.parametrize(
    ("line", "release", "error"),
    [
        ("--tensor-paralel-size 2", "0.5.23",
         "--tensor-paralel-size is not an argument of SGLang 0.5.23. Did you mean --tensor-parallel-size or "),
        ("--mem_fraction_static 0.8", "0.5.23", "Did you mean --mem-fraction-static"),
        ("-tp 2", "0.5.23", "-tp is not an argument of SGLang 0.5.23. Did you mean --tp-size?"),
        ("--qqq", "0.5.23", "--qqq is not an argument of SGLang 0.5.23. Remove it."),
        ("--torchao-config int4wo", "0.5.23",
         "--torchao-config is not an argument of SGLang 0.5.23; 0.4.0 to 0.5.17 have it. Remove it, or use an image"),
        ("--page-size 16", "0.4.0", "; 0.4.4.post4 to 0.5.23 have it."),
        ("--hybrid-kvcache-ratio 0.5", "0.5.23", "Please use --swa-full-tokens-ratio instead."),
        ("--pp 2", "0.5.23",
         "--pp is ambiguous in SGLang 0.5.23: --pp-size, --pp-max-micro-batch-size, --pp-async-batch-depth. Write the"),
        ("--served-model x", "0.5.23",
         "--served-model is short for --served-model-name, which the key served_model_name sets. Remove it."),
        ("--enable-metrics true", "0.5.23", "'true' belongs to no argument, and SGLang 0.5.23 refuses it. Remove it."),
        ("--enable-metrics=true", "0.5.23", "--enable-metrics takes no value, and has 'true'. Write --enable-metrics"),
        ("--no-lora-strict-loading=1", "0.5.23", "--no-lora-strict-loading takes no value, and has '1'."),
        ("--stream-output=1", "0.5.23", "--stream-output takes no value, and has '1'."),
        ("--log-level", "0.5.23", "--log-level needs a value, and has none. Write one after --log-level."),
        ("--cuda-graph-bs-decode --enable-metrics", "0.5.23", "--cuda-graph-bs-decode needs a value, and has none."),
        ("--log-level -- info", "0.5.23", "--log-level needs a value, and has none."),
        ("--max-running-requests many", "0.5.23",
         "--max-running-requests is 'many', which is not a whole number. Give it a whole number."),
        ("--mem-fraction-static 80%", "0.5.23", "--mem-fraction-static is '80%', which is not a number. Give it a"),
        ("--max-total-tokens 1.5Ki", "0.5.23", "is not a number like 20000, 20k or 16Ki."),
        ("--preferred-sampling-params {", "0.5.23", "--preferred-sampling-params is '{', which is not JSON."),
        ("--cuda-graph-max-bs x", "0.5.23", "--cuda-graph-max-bs-decode is 'x', which is not a whole number."),
        ("--help", "0.5.23", "--help makes SGLang print its help and end. Remove it."),
        ("stray", "0.5.23", "'stray' belongs to no argument"),
        ("--enable-ep-moe", "0.5.3.post3",
         "SGLang 0.5.3.post3 refuses --enable-ep-moe: NOTE: --enable-ep-moe is deprecated. Please set `--ep-size`"),
        ("--enable-expert-distribution-metrics", "0.5.19", "0.5.19 refuses --enable-expert-distribution-metrics"),
    ],
)  # fmt: skip
def test_mistakes(line: str, release: str, error: str) -> None:
    errors, _ = said(judged(line, release))
    assert any(error in told for told in errors), errors


@pytest.mark.parametrize(
    ("line", "release", "warning"),
    [
        ("--disable-cuda-graph", "0.5.23",
         "--disable-cuda-graph is deprecated in SGLang 0.5.23. Write --cuda-graph-backend-{decode,prefill}=disabled"),
        ("--grpc-mode", "0.5.23", "--grpc-mode is deprecated in SGLang 0.5.23. It says: (Deprecated, use --smg-grpc-"),
        ("--cuda-graph-max-bs 8", "0.5.19", "deprecated in SGLang 0.5.19. Write --cuda-graph-max-bs-decode instead."),
        ("--prefill-round-robin-balance", "0.5.12.post1", "round-robin-balance does nothing in SGLang 0.5.12.post1"),
        ("--load-balance-method shortest_queue", "0.5.23",
         "is 'shortest_queue', and SGLang 0.5.23 lists auto, round_robin, follow_bootstrap_room, total_requests, "),
        ("--config=/x.yaml", "0.5.23", "SGLang ignores --config=/x.yaml. Write it as two: --config /x.yaml."),
    ],
)  # fmt: skip
def test_warnings_leave_the_arguments_alone(line: str, release: str, warning: str) -> None:
    found = judged(line, release)
    assert found.arguments == tuple(line.split())
    assert not found.errors
    assert any(warning in told for told in found.warnings), found.warnings
    assert judged(line, release, strict=True).errors == ()


class TestUnknownRelease:
    """A release that is not in the catalogue is judged by its neighbours, no release by the newest."""

    def test_both_neighbours_know_it(self) -> None:
        found = judged("--enable-metrics", "0.5.15")
        assert (found.judged_by, found.exact) == ("SGLang 0.5.14 and 0.5.15.post1", False)
        assert said(found) == (
            [],
            ["SGLang 0.5.15 is not in the catalogue: the arguments are judged by those of 0.5.14 and 0.5.15.post1."],
        )

    @pytest.mark.parametrize(
        ("release", "flag", "knows"),
        [("0.5.13.post2", "--custom-sigquit-handler", "0.5.13.post1"), ("0.5.21.post1", "--attn-dp-size", "0.5.22")],
    )
    def test_one_neighbour_knows_it(self, release: str, flag: str, knows: str) -> None:
        found = judged(f"{flag} 2", release)
        assert found.arguments == (flag, "2")
        assert not found.errors
        assert f"{flag} is known to SGLang {knows} only, of " in found.warnings[1]

    def test_no_neighbour_knows_it(self) -> None:
        errors, _ = said(judged("--torchao-config x", "0.5.18.post1"))
        assert "--torchao-config is not an argument of SGLang 0.5.18 or 0.5.19;" in errors[0]

    def test_what_one_neighbour_has_is_not_translated(self) -> None:
        found = judged("--cuda-graph-max-bs 4", "0.5.19.post1")
        assert found.arguments == ("--cuda-graph-max-bs", "4")
        assert not found.errors

    def test_choices_are_those_of_both(self) -> None:
        gone = set(catalogue("0.5.19").flags["--attention-backend"].choices or ())
        gone -= set(catalogue("0.5.20").flags["--attention-backend"].choices or ())
        assert gone
        for choice in gone:
            assert len(judged(f"--attention-backend {choice}", "0.5.19.post1").warnings) == 1

    def test_newer_than_all(self) -> None:
        found = judged("--enable-metrics", "9.0.0")
        assert (found.judged_by, found.exact) == (f"SGLang {releases()[-1]}", False)
        assert "SGLang 9.0.0 is not in the catalogue" in found.warnings[0]

    def test_no_release(self) -> None:
        found = judged("--cuda-graph-max-bs 4", None)
        assert found.arguments == ("--cuda-graph-max-bs-decode", "4")
        assert found.warnings[0] == (
            "The image's tag names no SGLang release: the arguments are judged by those of 0.5.23, the newest known "
            "here. Name the release in the tag, like v0.5.23."
        )
        assert not found.exact
        assert judge((), None).warnings == ()


class TestImageList:
    """What the image lists counts more than any catalogue."""

    LISTED: ClassVar = {
        "sglang": "0.6.0.dev3",
        "options": [
            {"flags": ["--new-flag"], "choices": ["a", "b"]},
            {"flags": ["--attention-backend"], "choices": ["triton", "house"]},
            {"flags": ["--sampling-backend"]},
            {"flags": ["--incremental-streaming-output"], "action": "_StoreTrueAction"},
        ],
    }

    def ask(self, line: str) -> Judged:
        return judge(line.split(), "0.5.23", image_list=self.LISTED)

    def test_its_own_flags_and_choices(self) -> None:
        found = self.ask("--new-flag a --attention-backend house")
        assert said(found) == ([], [])
        assert (found.judged_by, found.exact) == ("the image itself (SGLang 0.6.0.dev3)", True)

    def test_a_wrong_choice_is_an_error(self) -> None:
        errors, _ = said(self.ask("--new-flag c"))
        assert errors == ["--new-flag is 'c', and SGLang 0.6.0.dev3 lists a, b. Choose one of these."]

    def test_what_it_lacks_is_unknown_or_translated(self) -> None:
        found = self.ask("--enable-metrics --stream-output --disable-flashinfer")
        assert [error.message for error in found.errors] == [
            "--enable-metrics is not an argument of SGLang 0.6.0.dev3; 0.4.0 to 0.5.23 have it."
        ]
        assert found.arguments == (
            "--enable-metrics", "--incremental-streaming-output",
            "--attention-backend", "triton", "--sampling-backend", "pytorch",
        )  # fmt: skip


def test_every_mistake_is_told_at_once() -> None:
    found = judged("--qqq 1 --enable-metrics=1 x --log-level")
    assert len(found.errors) == 4
    assert found.arguments == ("--qqq", "1", "--enable-metrics=1", "x", "--log-level")


def test_the_release_is_told_by_the_tag() -> None:
    assert release_of("lmsysorg/sglang:v0.5.23-cu129") == "0.5.23"
