"""Shared by all tests: host-side code is importable under the names that Ansible gives it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import ansible.module_utils
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]
ansible.module_utils.__path__.append(str(ROOT / "plugins" / "module_utils"))

# A shell starts background jobs with SIGINT ignored, and every child would inherit that: tests press Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples on every run, however slow the machine is; HYPOTHESIS_PROFILE=explore looks for new ones.
settings.register_profile("steady", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))
