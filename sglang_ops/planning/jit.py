"""Where compiled kernels are kept, so that no restart, crash or new release has to compile them again.

SGLang, Triton, Inductor, FlashInfer, DeepGEMM, TileLang and the CUDA driver compile at the first start, for minutes,
and keep the result in the container, which ends with the service. Here it is a directory of the host, one for each
image, kind of GPU and model: compiled code is good for nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sglang_ops import catalog
from sglang_ops.planning.command import ModelSource, Mount
from sglang_ops.planning.facts import HostFacts
from sglang_ops.planning.gpus import on_cpu
from sglang_ops.planning.settings import ResolvedImage, Settings
from sglang_ops.spec import Deployment

TARGET = "/jit"
# Who reads what, and what is below TARGET for it. All of these lock or rename what they write and name it by its
# content, so services with the same directory share it. Newer releases of SGLang would put most of them below
# SGLANG_CACHE_DIR themselves, older ones into the home directory and /tmp.
SHARED = {
    "CUDA_CACHE_PATH": "cuda",
    "FLASHINFER_WORKSPACE_BASE": "flashinfer",
    "SGLANG_CUTE_AOT_CACHE_DIR": "cute",
    "SGLANG_DG_CACHE_DIR": "deep-gemm",
    "SGLANG_JIT_CACHE_DIR": "sglang",
    "TILELANG_CACHE_DIR": "tilelang",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
    "TVM_FFI_CACHE_DIR": "tvm-ffi",  # SGLang's own kernels, before it had SGLANG_JIT_CACHE_DIR
}
# What is left in SGLANG_CACHE_DIR then is true of one server on its GPUs only: which of them reach each other
# (numbered as in the container), tuned tactics by rank. It is written without locks.
_OWN = "SGLANG_CACHE_DIR"
# Older images hold FlashInfer's kernels in their home directory, where a workspace elsewhere would not find them, and
# name DeepGEMM's cache otherwise.
_SINCE = {"FLASHINFER_WORKSPACE_BASE": "0.5.4", "SGLANG_DG_CACHE_DIR": "0.5.4"}
# Who mounts something over one of these, or sets SGLANG_CACHE_DIR, keeps the caches in their own way.
_TAKEN = frozenset({"/root", "/root/.cache", "/root/.cache/sglang", "/root/.triton", TARGET})
_LONGEST = 80


@dataclass(frozen=True)
class JitCache:
    """`directory` of the host is mounted at TARGET; `environment` makes the libraries use it."""

    directory: str
    environment: Mapping[str, str]

    @property
    def mount(self) -> Mount:
        return Mount(self.directory, TARGET)


def jit_cache(
    deployment: Deployment,
    settings: Settings,
    image: ResolvedImage,
    source: ModelSource,
    gpus: Sequence[int],
    facts: HostFacts,
) -> JitCache | None:
    """The cache of a service on `gpus`; None on the CPU, where it is switched off, and where the file has its own."""
    if not gpus or on_cpu(deployment) or not settings.jit_cache or _taken(deployment):
        return None
    kinds = dict.fromkeys(_slug(gpu.name) or "gpu" for gpu in facts.gpus if gpu.index in gpus)
    model = _slug(source.repo or source.directory or "") or "model"
    key = "-".join([_image(image), *kinds, model])
    own = f"{TARGET}/{deployment.service_name}-gpu{'-'.join(map(str, gpus))}"
    environment = {_OWN: own} | {name: f"{TARGET}/{part}" for name, part in SHARED.items() if _reads(image, name)}
    return JitCache(
        directory=f"{settings.jit_cache.rstrip('/')}/{key}",
        environment={name: path for name, path in environment.items() if name not in deployment.env_vars},
    )


def _taken(deployment: Deployment) -> bool:
    return _OWN in deployment.env_vars or any(mount.target.rstrip("/") in _TAKEN for mount in deployment.mounts)


def _image(image: ResolvedImage) -> str:
    """12 digits of the digest; where only the reference is known, as in `render`, that."""
    return image.digest.removeprefix("sha256:")[:12] if image.digest.startswith("sha256:") else _slug(image.ref)


def _reads(image: ResolvedImage, name: str) -> bool:
    since = _SINCE.get(name)
    return not (since and image.release) or catalog.order(image.release) >= catalog.order(since)


def _slug(text: str) -> str:
    """`NVIDIA H200` → `NVIDIA-H200`: what is a file's name everywhere."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text)[:_LONGEST].strip("-.")
