"""The part of SGLang's command line that decides about memory and parallelism, read into one record."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sglang_ops.planning.command import option

_GIB = 2**30
_UNITS = {"k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
_T = TypeVar("_T")


@dataclass(frozen=True)
class Sizes:
    """What SGLang is told; None where it decides itself. `offload` in GiB, lengths and pool sizes in tokens.

    `dp` are whole copies of the model on GPUs of their own; `attn_dp` copies of the attention only, within `tp`.
    """

    tp: int = 1
    pp: int = 1
    dp: int = 1
    attn_dp: int = 1
    mem_fraction_static: float | None = None
    chunked_prefill_size: int | None = None
    max_prefill_tokens: int = 16384
    max_running_requests: int | None = None
    max_total_tokens: int | None = None
    context_length: int | None = None
    page_size: int = 1
    kv_cache_dtype: str = "auto"
    dtype: str = "auto"
    quantization: str | None = None
    decode_graphs: bool = True
    prefill_graphs: bool = True
    decode_graph_sizes: int | None = None
    prefill_graph_tokens: int | None = None
    speculative: str | None = None
    disaggregation: str = "null"
    a2a: str = "none"
    lora: bool = False
    language_only: bool = False
    offload: float = 0.0
    dense_replicated: bool = False
    shared_replicated: bool = False
    encoder_replicated: bool = False
    feature_transport: str | None = None

    @property
    def attn_tp(self) -> int:
        """Ranks that one copy of the attention is cut across."""
        return max(1, self.tp // self.attn_dp)

    @property
    def gpus(self) -> int:
        return self.tp * self.pp * self.dp

    @property
    def offloaded_bytes(self) -> float:
        return self.offload * _GIB

    @classmethod
    def of(cls, arguments: Sequence[str]) -> Sizes:
        """Read the words of a command line. Raises ValueError for a number that is none."""
        dp = value(arguments, ("--dp-size", "--data-parallel-size"), int) or 1
        attn_dp = value(arguments, ("--attn-dp-size", "--attention-data-parallel-size"), int) or 1
        if present(arguments, "--enable-dp-attention") and dp > 1:
            attn_dp, dp = dp, 1
        graphs = not present(arguments, "--disable-cuda-graph")
        a2a = value(arguments, ("--moe-a2a-backend",), str)
        decode = value(arguments, ("--cuda-graph-backend-decode",), str)
        prefill = value(arguments, ("--cuda-graph-backend-prefill",), str)
        no_prefill = ("--disable-prefill-cuda-graph", "--disable-piecewise-cuda-graph")
        sizes = ("--cuda-graph-max-bs-decode", "--cuda-graph-max-bs")
        tokens = ("--cuda-graph-max-bs-prefill", "--piecewise-cuda-graph-max-tokens")
        listed = several(arguments, "--cuda-graph-bs-decode") or several(arguments, "--cuda-graph-bs")
        return cls(
            tp=value(arguments, ("--tp-size", "--tensor-parallel-size"), int) or 1,
            pp=value(arguments, ("--pp-size", "--pipeline-parallel-size"), int) or 1,
            dp=dp,
            attn_dp=attn_dp,
            mem_fraction_static=value(arguments, ("--mem-fraction-static",), float),
            chunked_prefill_size=value(arguments, ("--chunked-prefill-size",), integer),
            max_prefill_tokens=value(arguments, ("--max-prefill-tokens",), integer) or 16384,
            max_running_requests=value(arguments, ("--max-running-requests",), integer),
            max_total_tokens=value(arguments, ("--max-total-tokens",), integer),
            context_length=value(arguments, ("--context-length",), integer),
            page_size=value(arguments, ("--page-size",), integer) or 1,
            kv_cache_dtype=value(arguments, ("--kv-cache-dtype",), str) or "auto",
            dtype=value(arguments, ("--dtype",), str) or "auto",
            quantization=value(arguments, ("--quantization",), str),
            decode_graphs=decode != "disabled"
            if decode
            else graphs and not present(arguments, "--disable-decode-cuda-graph"),
            prefill_graphs=prefill != "disabled"
            if prefill
            else graphs and not any(present(arguments, flag) for flag in no_prefill),
            decode_graph_sizes=max(listed) if listed else value(arguments, sizes, integer),
            prefill_graph_tokens=value(arguments, tokens, integer),
            speculative=value(arguments, ("--speculative-algorithm",), str),
            disaggregation=value(arguments, ("--disaggregation-mode",), str) or "null",
            a2a=a2a or ("deepep" if present(arguments, "--enable-deepep-moe") else "none"),
            lora=present(arguments, "--enable-lora") or present(arguments, "--lora-paths"),
            language_only=present(arguments, "--language-only") or present(arguments, "--language-model-only"),
            offload=value(arguments, ("--cpu-offload-gb",), float) or 0.0,
            dense_replicated=option(arguments, "--moe-dense-tp-size") == "1",
            shared_replicated=a2a == "deepep",
            encoder_replicated=present(arguments, "--mm-enable-dp-encoder"),
            feature_transport=value(arguments, ("--mm-feature-transport",), str),
        )


def present(arguments: Sequence[str], flag: str) -> bool:
    return flag in arguments


def value(arguments: Sequence[str], names: Sequence[str], read: Callable[[str], _T]) -> _T | None:
    """The value of the first of `names` that is given. Raises ValueError with the name for one that cannot be read."""
    for name in names:
        text = option(arguments, name)
        if text is not None:
            try:
                return read(text)
            except ValueError as error:
                raise ValueError(f"{name} is '{text}', which is not a number.") from error
    return None


def several(arguments: Sequence[str], name: str) -> list[int]:
    """The numbers after an option that takes several."""
    if name not in arguments:
        return []
    rest = arguments[arguments.index(name) + 1 :]
    end = next((position for position, word in enumerate(rest) if not word.isdecimal()), len(rest))
    return [int(word) for word in rest[:end]]


def integer(text: str) -> int:
    """A number as SGLang's `human_readable_int` reads it: 20000, 20k, 16Ki."""
    for unit in sorted(_UNITS, key=len, reverse=True):
        if text.endswith(unit):
            return int(float(text.removesuffix(unit)) * _UNITS[unit])
    return int(text)


def overrides(arguments: Sequence[str]) -> Mapping[str, Any]:
    """`--json-model-override-args` as a mapping; what cannot be read is left to SGLang to refuse."""
    try:
        read = json.loads(option(arguments, "--json-model-override-args") or "{}")
    except ValueError:
        return {}
    return read if isinstance(read, dict) else {}
