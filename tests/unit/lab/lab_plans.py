"""A plan for tests that need one."""

from __future__ import annotations

from sglang_ops.lab.settings import Plan, Shape


def make_plan(**shape: object) -> Plan:
    return Plan(
        shape=Shape(**shape),  # type: ignore[arg-type]
        network="198.18.7",
        mtu=1400,
        tree="/cache/trees/debian13-0123",
        registry="/cache/registry",
        models="/cache/models",
    )
