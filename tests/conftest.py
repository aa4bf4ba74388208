"""Shared by all tests: host-side code is importable under the names that Ansible gives it."""

from __future__ import annotations

from pathlib import Path

import ansible.module_utils

ROOT = Path(__file__).resolve().parents[1]
ansible.module_utils.__path__.append(str(ROOT / "plugins" / "module_utils"))
