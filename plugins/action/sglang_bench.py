"""Run the benchmark with the module of the same name, showing how far it is."""

from __future__ import annotations

import sys
from pathlib import Path

try:
    import sglang_ops  # noqa: F401
except ImportError:  # plain ansible-playbook in a checkout
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from sglang_ops.ansible_action import ProgressAction


class ActionModule(ProgressAction):
    """The module `sglang_bench`."""
