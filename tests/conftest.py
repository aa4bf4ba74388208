"""Shared by all tests: host-side code is importable under the names that Ansible gives it."""

from __future__ import annotations

import signal
from pathlib import Path

import ansible.module_utils

ROOT = Path(__file__).resolve().parents[1]
ansible.module_utils.__path__.append(str(ROOT / "plugins" / "module_utils"))

# A shell starts background jobs with SIGINT ignored, and every child would inherit that: tests press Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
