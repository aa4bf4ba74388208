"""What to write instead of an argument that a release no longer has.

SGLang keeps a renamed argument for some releases and names the new one while it does; that is in the catalogue.
Here is what only its help texts and its history say.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from . import Catalogue, catalogue, last_with
from .options import Option

# On no release do these start the server that is meant; see docs/arguments.md.
NEVER = ("--disable-flashinfer",)


@dataclass(frozen=True)
class Successor:
    """`flags` with fixed values, or with the values of the old argument (`moved`), perhaps under new names."""

    flags: tuple[tuple[str, ...], ...] = ()
    moved: str | None = None
    renamed: Mapping[str, str] | None = None
    why: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        return (self.moved,) if self.moved else tuple(words[0] for words in self.flags)


_SPLITS = {"in-seq-split": "zigzag", "round-robin-split": "interleave"}
_RUNNERS = ("cutedsl", "cutlass", "mxfp4", "trtllm")

# The sources are the help texts of the last release that had the argument, but for the renames that SGLang made
# without notice, where the new argument has the old one's type and default in the very next release.
_WRITTEN: Mapping[str, Successor] = {
    "--disable-flashinfer": Successor((("--attention-backend", "triton"), ("--sampling-backend", "pytorch"))),
    "--disable-flashinfer-sampling": Successor((("--sampling-backend", "pytorch"),)),
    "--disable-disk-cache": Successor((("--disable-outlines-disk-cache",),)),
    "--enable-flashinfer-mla": Successor((("--attention-backend", "flashinfer"),)),
    "--enable-flashmla": Successor((("--attention-backend", "flashmla"),)),
    "--enable-deepep-moe": Successor((("--moe-a2a-backend", "deepep"),)),
    "--enable-triton-kernel-moe": Successor((("--moe-runner-backend", "triton_kernel"),)),
    **{
        f"--enable-flashinfer-{runner}-moe": Successor((("--moe-runner-backend", f"flashinfer_{runner}"),))
        for runner in _RUNNERS
    },
    "--elastic-ep-rejoin": Successor((("--elastic-ep-join-mode", "recover"),)),
    "--dsa-prefill-cp-mode": Successor(moved="--cp-strategy", renamed=_SPLITS),
    "--nsa-prefill-cp-mode": Successor(moved="--cp-strategy", renamed=_SPLITS),
    "--prefill-cp-mode": Successor(moved="--cp-strategy", renamed=_SPLITS),
    "--enable-overlap-schedule": Successor(why="it is the default"),
    "--enable-piecewise-cuda-graph": Successor(why="it is the default"),
    "--collect-tokens-histogram": Successor(why="--enable-metrics does it by itself"),
    "--prefill-round-robin-balance": Successor(why="it had no effect any more"),
    # renamed without notice
    "--file-storage-pth": Successor(moved="--file-storage-path"),  # 0.4.3
    "--impl": Successor(moved="--model-impl"),  # 0.4.9
    "--max-micro-batch-size": Successor(moved="--pp-max-micro-batch-size"),  # 0.5.3
    "--oltp-traces-endpoint": Successor(moved="--otlp-traces-endpoint"),  # 0.5.4
    "--kt-amx-weight-path": Successor(moved="--kt-weight-path"),  # 0.5.5
    "--kt-amx-method": Successor(moved="--kt-method"),  # 0.5.5
}
_NEW_FLAG = re.compile(r"(--[a-z0-9-]+)(?:=(\w+))?")


def successor(flag: str) -> Successor | None:
    """The exact successor of an argument; None where there is none, or where it depends on other things."""
    return _WRITTEN.get(flag) or _named_by_sglang(flag)


@dataclass(frozen=True)
class Former:
    """An argument as SGLang took it last, and what stands for it now."""

    option: Option
    successor: Successor


def former(words: Sequence[str], present: Catalogue) -> dict[str, Former]:
    """The flags among `words` that `present` lacks or refuses, and can replace."""
    found = {}
    for flag in {word.partition("=")[0] for word in words if word.startswith("--")}:
        here = present.flags.get(flag)
        if here and not here.refuses and flag not in NEVER:
            continue
        last, new = last_with(flag), successor(flag)
        if last and new and all(name in present.flags for name in new.names):
            found[flag] = Former(catalogue(last).flags[flag], new)
    return found


def _named_by_sglang(flag: str) -> Successor | None:
    """What SGLang's last release with this argument said, as long as it still did the work of the new one."""
    last = last_with(flag)
    option = catalogue(last).flags[flag] if last else None
    matched = _NEW_FLAG.fullmatch(option.new_flag or "") if option else None
    if not option or not matched:
        return None
    new, value = matched.groups()
    if option.action == "DeprecatedAliasStoreAction":
        return Successor(moved=new)
    return Successor(((new, value),) if value else ((new,),))
