"""What SGLang asserts about sizes that must divide each other, found before a server is started.

Read in 0.5.17 and 0.5.23: `check_server_args` and `_handle_data_parallelism` of server_args.py, the attention of
srt/models, `_derive_context_length` of srt/configs/model_config.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sglang_ops.planning.architecture import Architecture
from sglang_ops.planning.command import option
from sglang_ops.planning.problems import Problem
from sglang_ops.planning.sizes import Sizes


def constraints(
    architecture: Architecture | None, arguments: Sequence[str] | Sizes, *, nodes: int = 1, overwrite: bool = False
) -> list[Problem]:
    """Every rule that a command line breaks, for a model of this shape where it is known.

    `overwrite` is SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN. Raises ValueError for an argument that is no number.
    """
    words = () if isinstance(arguments, Sizes) else arguments
    sizes = arguments if isinstance(arguments, Sizes) else Sizes.of(arguments)
    found = [*_parallel(sizes, nodes), *_pages(sizes, words), *_words(words)]
    if architecture:
        found += [*_heads(architecture, sizes), *_context(architecture, sizes, overwrite)]
    return [Problem("arguments", message) for message in found]


def _parallel(sizes: Sizes, nodes: int) -> Iterator[str]:
    if sizes.tp * sizes.pp % nodes:
        yield (
            f"tensor_parallel_size {sizes.tp} × pipeline_parallel_size {sizes.pp} is not divisible by {nodes} nodes. "
            f"Set a multiple of {nodes}."
        )
    if sizes.dp > 1 and nodes > 1:
        yield f"data_parallel_size {sizes.dp} works on one node only, found {nodes}. Set 1, or --attn-dp-size."
    if sizes.dp > 1 and sizes.attn_dp > 1:
        yield f"--attn-dp-size {sizes.attn_dp} excludes data_parallel_size {sizes.dp}. Set one of them to 1."
    if sizes.tp % sizes.attn_dp:
        yield (
            f"the attention is to run {sizes.attn_dp} times in parallel, which does not divide tensor_parallel_size "
            f"{sizes.tp}. Set a divisor of {sizes.tp}."
        )


def _pages(sizes: Sizes, words: Sequence[str]) -> Iterator[str]:
    chunk, page = sizes.chunked_prefill_size, sizes.page_size
    if chunk and chunk > 0 and chunk % page and sizes.disaggregation != "decode":
        yield (
            f"--chunked-prefill-size {chunk} is not divisible by --page-size {page}. "
            f"Set --chunked-prefill-size {max(page, chunk // page * page)}."
        )
    fraction = sizes.mem_fraction_static
    if fraction is not None and not 0 < fraction < 1:
        yield f"--mem-fraction-static {fraction} is not between 0 and 1. Remove it, or set for example 0.88."
    dense = option(words, "--moe-dense-tp-size")
    if dense is not None and dense not in {"1", str(sizes.tp)}:
        yield f"--moe-dense-tp-size {dense} is neither 1 nor tensor_parallel_size {sizes.tp}. Set 1, or remove it."


def _words(words: Sequence[str]) -> Iterator[str]:
    name = option(words, "--served-model-name") or ""
    if ":" in name:
        yield f"--served-model-name '{name}' contains ':', which SGLang refuses. Write '{name.replace(':', '-')}'."
    workers = option(words, "--tokenizer-worker-num")
    if workers not in {None, "1"} and option(words, "--api-key"):
        yield f"--tokenizer-worker-num {workers} excludes --api-key. Remove one of them."


def _heads(architecture: Architecture, sizes: Sizes) -> Iterator[str]:
    ranks, heads, kv_heads = sizes.attn_tp, architecture.heads, architecture.kv_heads
    whole = "tensor_parallel_size" if sizes.attn_dp == 1 else "tensor_parallel_size divided by --attn-dp-size, which"
    if heads % ranks:
        yield (
            f"{architecture.name} has {heads} attention heads, which {whole} {ranks} does not divide. "
            f"Set {_divisors(heads, ranks)}."
        )
    elif not architecture.mla and kv_heads % ranks and ranks % kv_heads:
        fitting = [size for size in range(1, heads + 1) if not heads % size]
        fitting = [size for size in fitting if not kv_heads % size or not size % kv_heads]
        yield (
            f"{architecture.name} has {kv_heads} key-value heads, which cannot be shared out or repeated over "
            f"{whole} {ranks}. Set {_near(fitting, ranks)}."
        )
    if sizes.pp > architecture.layers:
        yield f"{architecture.name} has {architecture.layers} layers: pipeline_parallel_size {sizes.pp} is too many."


def _context(architecture: Architecture, sizes: Sizes, overwrite: bool) -> Iterator[str]:
    asked, most = sizes.context_length, architecture.context_length
    if asked and asked > most and not overwrite:
        yield (
            f"--context-length {asked} is more than the {most} tokens that {architecture.name} was made for. "
            f"Lower it, or set SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN: 1 in env_vars."
        )


def _divisors(number: int, near: int) -> str:
    return _near([size for size in range(1, number + 1) if number % size == 0], near)


def _near(sizes: Sequence[int], wanted: int) -> str:
    """The next smaller and the next larger of `sizes`."""
    below = max((size for size in sizes if size < wanted), default=None)
    above = min((size for size in sizes if size > wanted), default=None)
    return " or ".join(str(size) for size in (below, above) if size)
