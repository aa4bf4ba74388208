"""The command line takes what SGLang takes and refuses what SGLang refuses, in the same words."""

from __future__ import annotations

import pytest

from sglang_ops.catalog.options import human_readable_int
from sglang_ops.simulator import SGLANG_VERSION, command
from sglang_ops.simulator.arguments import parse, parser

MODEL = ("--model-path", "lab/tiny-llama")


def test_the_catalogue_is_complete() -> None:
    options = {option for action in parser()._actions for option in action.option_strings}
    assert len(parser()._actions) == 532
    assert {"--tp-size", "--tensor-parallel-size", "--attn-dp-size", "--no-lora-strict-loading"} <= options
    assert "--disable-flashinfer" not in options


@pytest.mark.parametrize(
    ("written", "name", "value"),
    [
        (("--tp", "4"), "tp_size", 4),
        (("--tensor-parallel-size", "4"), "tp_size", 4),
        (("--dp", "2"), "dp_size", 2),
        (("--mem-fraction", "0.8"), "mem_fraction_static", 0.8),
        (("--served-model", "m"), "served_model_name", "m"),
        (("--max-total-tokens", "20k"), "max_total_tokens", 20_000),
        (("--fp8-gemm-backend", "triton"), "fp8_gemm_runner_backend", "triton"),
        (("--no-lora-strict-loading",), "lora_strict_loading", False),
        (("--enable-metrics",), "enable_metrics", True),
        (("--cuda-graph-bs-decode", "1", "2"), "cuda_graph_bs_decode", [1, 2]),
        (("--model-checksum",), "model_checksum", ""),
        (("--preferred-sampling-params", '{"temperature": 0}'), "preferred_sampling_params", {"temperature": 0}),
    ],
)
def test_options_are_understood(written: tuple[str, ...], name: str, value: object) -> None:
    assert getattr(parse([*MODEL, *written]), name) == value


@pytest.mark.parametrize(
    ("written", "words"),
    [
        (("--no-such-flag", "x"), "sglang serve: error: unrecognized arguments: --no-such-flag x"),
        (
            ("--disable-flashinfer",),
            "error: ambiguous option: --disable-flashinfer could match --disable-flashinfer-autotune, --disable-flashi",
        ),
        (
            ("--pp", "2"),
            "ambiguous option: --pp could match --pp-size, --pp-max-micro-batch-size, --pp-async-batch-depth",
        ),
        (("--load-format", "nope"), "argument --load-format: invalid choice: 'nope' (choose from 'auto', 'pt', "),
        (("--port", "abc"), "argument --port: invalid int value: 'abc'"),
        (("--mem-fraction-static", "abc"), "argument --mem-fraction-static: invalid float value: 'abc'"),
        (("--max-total-tokens", "1.5Ki"), "argument --max-total-tokens: invalid human_readable_int value: '1.5Ki'"),
        (("--monokernel-backend", "intel"), "argument --monokernel-backend: invalid choice: 'intel'"),
    ],
)
def test_wrong_options_exit_2(written: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse([*MODEL, *written])
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_the_model_is_required(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(["--port", "30000"])
    assert ended.value.code == 2
    assert "error: the following arguments are required: --model-path/--model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("written", "name", "value"),
    [
        (("--disable-cuda-graph",), "disable_cuda_graph", True),
        (("--monokernel-backend", "amd"), "enable_amd_monokernel", True),
    ],
)
def test_deprecated_options_warn_and_work(
    written: tuple[str, ...], name: str, value: object, caplog: pytest.LogCaptureFixture
) -> None:
    assert getattr(parse([*MODEL, *written]), name) == value
    assert f"'{written[0]}' is deprecated and will be removed in a future release. Use '--" in caplog.text


def test_a_deprecated_option_that_is_absent_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    given = parse(MODEL)
    assert (given.disable_cuda_graph, given.enable_amd_monokernel) == (False, False)
    assert not caplog.text


@pytest.mark.parametrize(
    ("text", "number"), [("7", 7), ("1k", 1000), ("25.6k", 25_600), ("1Ki", 1024), ("2M", 2 * 10**6)]
)
def test_human_readable_int(text: str, number: int) -> None:
    assert human_readable_int(text) == number


@pytest.mark.parametrize("text", ["", "k", "1.5", "1.5Ki", "1kk", "one"])
def test_human_readable_int_refuses(text: str) -> None:
    with pytest.raises(ValueError):
        human_readable_int(text)


def test_the_sglang_command_serves_a_positional_model(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr(command.server, "main", seen.append)
    for arguments in (["lab/tiny-llama", "--port", "1"], ["--model-path", "lab/tiny-llama"]):
        with pytest.raises(SystemExit):
            command.main(["serve", *arguments])
    assert seen == [["--model-path", "lab/tiny-llama", "--port", "1"], ["--model-path", "lab/tiny-llama"]]


def test_the_sglang_command_says_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(["version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"sglang-simulator of sglang {SGLANG_VERSION}\n"
    with pytest.raises(SystemExit) as ended:
        command.main([])
    assert ended.value.code == 2
