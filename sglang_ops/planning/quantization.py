"""How the weights of a model are stored: bits per parameter, and what its checkpoint says of the KV cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Bits of one weight with its share of scales (group of 128, or of 16 for nvfp4 and 32 for mxfp4).
_BITS = {
    "fp8": 8.0,
    "modelopt": 8.0,
    "modelopt_fp8": 8.0,
    "w8a8_fp8": 8.0,
    "w8a8_int8": 8.0,
    "mxfp8": 8.25,
    "fbgemm_fp8": 8.0,
    "awq": 4.25,
    "awq_marlin": 4.25,
    "gptq_marlin": 4.25,
    "modelopt_fp4": 4.5,
    "nvfp4": 4.5,
    "petit_nvfp4": 4.5,
    "mxfp4": 4.25,
    "bitsandbytes": 4.25,
}
# What `--quantization` can do to weights that are stored unquantised, while they are loaded.
ONLINE = {"fp8": 8.0, "w8a8_fp8": 8.0, "mxfp8": 8.25, "bitsandbytes": 4.25}


@dataclass(frozen=True)
class Quantization:
    """`bits` per weight of a linear layer; embeddings stay in the model's type. `experts_only` as in gpt-oss."""

    method: str
    bits: float
    experts_only: bool = False
    fp8_cache: bool = False

    @classmethod
    def of(cls, config: object) -> Quantization | None:
        """Read a `quantization_config`; a method that is not known counts as 16 bits."""
        if not isinstance(config, Mapping) or not config:
            return None
        algorithm = str(config.get("quant_algo") or "").lower()
        method = str(config.get("quant_method") or algorithm or "unknown").lower()
        if method == "modelopt" and "fp4" in algorithm:
            method = "modelopt_fp4"
        return cls(method, _bits(method, config), method == "mxfp4", _fp8_cache(config))


def _bits(method: str, config: Mapping[str, Any]) -> float:
    if method in {"gptq", "awq", "auto-round"}:
        bits = float(config.get("bits") or config.get("w_bit") or 4)
        group = float(config.get("group_size") or config.get("q_group_size") or 128)
        return bits + (16 + bits) / group if group > 0 else bits
    if method == "bitsandbytes":
        return 8.0 if config.get("load_in_8bit") else _BITS[method]
    if method == "compressed-tensors":
        weights = [group.get("weights") or {} for group in (config.get("config_groups") or {}).values()]
        found = [float(each["num_bits"]) + 16 / float(each.get("group_size") or 1024) for each in weights if each]
        return max(found, default=16.0)
    return _BITS.get(method, 16.0)


def _fp8_cache(config: Mapping[str, Any]) -> bool:
    """`kv_cache_quant_algo` of ModelOpt checkpoints makes `--kv-cache-dtype auto` fp8 (mem_cache/kv_cache_dtype.py)."""
    named = config.get("kv_cache_quant_algo") or (config.get("quantization") or {}).get("kv_cache_quant_algo")
    return str(named or "").upper() == "FP8"
