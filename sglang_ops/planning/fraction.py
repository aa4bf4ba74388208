"""SGLang's automatic `--mem-fraction-static`, by release.

The rule, read in the releases named here: `_handle_gpu_memory_settings` of server_args.py up to 0.5.18,
`handle_gpu_memory_settings` of arg_groups/memory_hook.py since 0.5.19. f = (T - reserve) / T to three places, with T
what `nvidia-smi` calls the memory of the smallest GPU. Checked against the engine: docs/memory.md.

`SGLANG_ENABLE_POST_CAPTURE_KV_SIZING` (0.5.16 and later, off by default) replaces the whole rule and is not modelled.
"""

from __future__ import annotations

from dataclasses import dataclass

from sglang_ops.planning.architecture import Architecture, Vision
from sglang_ops.planning.sizes import Sizes

_GIB_IN_MIB = 1024
# What a release that cannot be told from its image is taken for: the newest whose source was read.
NEWEST = (0, 5, 23)
# MoE all-to-all backends with which prefill graphs stay on, since 0.5.17.
_CAPTURED_A2A = {"none", "deepep", "megamoe", "flashinfer"}


@dataclass(frozen=True)
class Fraction:
    """A value of `--mem-fraction-static`, and the MiB that SGLang itself thinks must stay free for the rest.

    `graphs` is the part of the reserve that CUDA graphs take. `exact` is False where the rule is only near.
    """

    value: float
    reserve: float
    graphs: float
    exact: bool = True


def version(release: str | None) -> tuple[int, int, int]:
    """(0, 5, 10) of "0.5.10.post1"; the newest for None."""
    if release is None:
        return NEWEST
    numbers = [int(part) for part in release.split(".")[:3] if part.isdecimal()]
    return (numbers[0], numbers[1], numbers[2]) if len(numbers) == 3 else NEWEST


def automatic(architecture: Architecture, sizes: Sizes, total: int, release: str | None) -> Fraction:
    """The fraction that SGLang chooses where none is given. `total` in MiB."""
    known = version(release)
    graphs = _graphs(architecture, sizes, total, known)
    if known < (0, 4, 8):
        return Fraction(_early(sizes, total), 0.12 * total, graphs, exact=False)
    reserve = _by_table(sizes, total) if known < (0, 5, 3) else _by_formula(sizes, total, known, graphs)
    value = round((total - reserve) / total, 3)
    if architecture.multimodal and architecture.vision and not sizes.language_only and sizes.disaggregation != "decode":
        value *= _vision_factor(architecture.vision)
    return Fraction(value, reserve, graphs)


def _early(sizes: Sizes, total: int) -> float:
    """0.4.0 to 0.4.7; the latter had a further rule above 96 GiB that changed with every release."""
    table = ((16, 0.79), (8, 0.81), (4, 0.85), (2, 0.87))
    value = next((value for ranks, value in table if sizes.tp * sizes.pp >= ranks), 0.88)
    if total > 96 * _GIB_IN_MIB:
        value = min(value + 48 * _GIB_IN_MIB * (1 - value) / total, (total - 18 * _GIB_IN_MIB) / total)
    return value


def _by_table(sizes: Sizes, total: int) -> float:
    """0.4.8 to 0.5.2."""
    ranks = sizes.tp * sizes.pp
    if total < 35 * _GIB_IN_MIB:
        gib = 2.8 + ranks / 10
    elif total < 90 * _GIB_IN_MIB:
        gib = 9.5 + ranks / 2
    else:
        gib = 12 + ranks / 2 if total < 160 * _GIB_IN_MIB else 32
    return (gib + (2 if sizes.speculative else 0) + (4 if sizes.attn_dp > 1 else 0)) * _GIB_IN_MIB


def _by_formula(sizes: Sizes, total: int, known: tuple[int, int, int], graphs: float) -> float:
    """0.5.3 and later."""
    reserve = 512 + 1.5 * activation_tokens(sizes, total, known) + sizes.tp * sizes.pp / 8 * 1024 + graphs
    if total > 60 * _GIB_IN_MIB:
        reserve = max(reserve, 10 * 1024)
    if known < (0, 5, 14) and sizes.speculative not in {None, "NGRAM"}:
        draft = 6 if sizes.speculative == "STANDALONE" else 2 if known < (0, 5, 10) else 4
        reserve += draft * 1024
    if known >= (0, 5, 15) and sizes.a2a == "deepep" and sizes.decode_graphs and sizes.disaggregation != "prefill":
        reserve += 2 * 1024
    return reserve


def activation_tokens(sizes: Sizes, total: int, known: tuple[int, int, int]) -> int:
    """The largest batch of tokens that goes through the model at once."""
    if sizes.disaggregation == "decode" and known >= (0, 5, 15):
        return max(sizes.max_running_requests or _decode_graph_size(sizes, total, known), 2048)
    chunk = _chunk(sizes, total, known)
    return max(chunk if chunk > 0 else sizes.max_prefill_tokens, 2048)


def _chunk(sizes: Sizes, total: int, known: tuple[int, int, int]) -> int:
    """Default of `--chunked-prefill-size`."""
    if sizes.chunked_prefill_size is not None:
        return sizes.chunked_prefill_size
    small = 4096 if known >= (0, 5, 20) else 2048
    table = ((20, 2048), (35, small), (60, 4096), (160, 8192))
    return next((chunk for gib, chunk in table if total < gib * _GIB_IN_MIB), 16384)


def _decode_graph_size(sizes: Sizes, total: int, known: tuple[int, int, int]) -> int:
    """Default of `--cuda-graph-max-bs-decode`: for fewer than four tensor-parallel ranks, and for more."""
    if sizes.decode_graph_sizes is not None:
        return sizes.decode_graph_sizes
    small = (48, 160) if known >= (0, 5, 20) else (24, 80) if known >= (0, 5, 4) else (16, 80)
    table = ((20, (8, 8)), (35, small), (60, (32, 160)), (160, (256, 512)))
    few, many = next((sizes for gib, sizes in table if total < gib * _GIB_IN_MIB), (512, 512))
    largest = few if sizes.tp < 4 else many
    if known >= (0, 5, 22) and sizes.max_running_requests:
        largest = min(largest, sizes.max_running_requests)
    return largest


def _graphs(architecture: Architecture, sizes: Sizes, total: int, known: tuple[int, int, int]) -> float:
    """MiB set aside for CUDA graphs: 2 for each decode batch size, 8 for each captured prefill size."""
    largest = _decode_graph_size(sizes, total, known)
    reserve = 0.0
    if known < (0, 5, 15) or (sizes.decode_graphs and sizes.disaggregation != "prefill"):
        reserve += 2 * largest
    if sizes.attn_dp > 1 and not (known >= (0, 5, 15) and sizes.disaggregation == "prefill"):
        reserve += (4.5 if largest > 300 else 3) * largest * sizes.attn_dp
    if _captures_prefill(architecture, sizes, known):
        if architecture.mla:
            reserve += 1.5 * 1024
        else:
            reserve += 8 * len(_prefill_graph_sizes(sizes, _chunk(sizes, total, known), known))
        if known >= (0, 5, 17) and sizes.a2a == "deepep":
            reserve += 1024
    return reserve


def _captures_prefill(architecture: Architecture, sizes: Sizes, known: tuple[int, int, int]) -> bool:
    """Whether prefill is captured in graphs, which many settings turn off (`apply_cuda_graph_compatibility`)."""
    if known < (0, 5, 10) or not sizes.prefill_graphs or sizes.disaggregation == "decode":
        return False
    if architecture.multimodal and (known < (0, 5, 16) or not architecture.prefill_graphs):
        return False
    if known < (0, 5, 17) and (sizes.lora or sizes.attn_dp > 1 or sizes.a2a != "none"):
        return False
    if known < (0, 5, 15):
        speculative = sizes.speculative if known < (0, 5, 14) else None
        return not (speculative or sizes.pp > 1 or sizes.offload > 0 or sizes.disaggregation != "null")
    if sizes.pp > 1 and known >= (0, 5, 19):
        return False
    sparse = architecture.mla is not None and architecture.mla.index_dim > 0
    if architecture.mla and known < (0, 5, 18) and not (sparse and known >= (0, 5, 17)):
        return False
    return sizes.a2a in _CAPTURED_A2A


def _prefill_graph_sizes(sizes: Sizes, chunk: int, known: tuple[int, int, int]) -> list[int]:
    """Token counts that are captured (`generate_prefill_cuda_graph_batch_sizes`)."""
    largest = sizes.prefill_graph_tokens
    if largest is None:
        largest = chunk if sizes.max_total_tokens is None else min(chunk, sizes.max_total_tokens)
        if (0, 5, 14) <= known < (0, 5, 17) and sizes.context_length:
            largest = min(largest, sizes.context_length)
    ranges = ((4, 33, 4), (48, 257, 16), (288, 513, 32), (576, 1025, 64), (1280, 4097, 256), (4608, largest + 1, 512))
    return [size for bounds in ranges for size in range(*bounds) if size <= largest]


def _vision_factor(vision: Vision) -> float:
    """`adjust_mem_fraction_for_vlm`: about 5 % less, more for a tower larger than ViT-L/14."""
    complexity = vision.layers * vision.hidden**2 / (24 * 1024**2)
    return 0.95 * max(0.8, min(1.05, 1 - 0.1 * (complexity - 1)))
