"""The lab's container images, made from directory trees without a container engine, and its registry's content."""

from __future__ import annotations

from sglang_ops.lab.images.build import ensure_registry, is_cached

__all__ = ["ensure_registry", "is_cached"]
