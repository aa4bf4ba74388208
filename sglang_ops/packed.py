"""A module as one script that carries only what is ours.

Ansible sends a Python module with its own module library, which every execution compiles anew: half of the CPU time
that looking at a host costs. A read-only module needs nothing of it. The same file of `plugins/modules/` is therefore
also offered in Ansible's older form, a script with its arguments in it (``INCLUDE_ANSIBLE_MODULE_JSON_ARGS``); plain
``ansible-playbook`` runs the file itself, with the same answer.
"""

from __future__ import annotations

import base64
import json
import re
import zlib
from pathlib import Path

from sglang_ops import content

MODULES = ("sglang_facts",)  # those that every run of a converged fleet executes, and that change nothing
_OURS = re.compile(
    r"^\s*from ansible\.module_utils(?:\.(sglang_host_\w+) import|\s+import (sglang_host_\w+))", re.MULTILINE
)

# The part of AnsibleModule that such a module uses. Arguments come from our own action plugins only, so that types
# need no checking. JSON cannot hold three quotation marks in a row that end a raw string.
_SCRIPT = '''#!/usr/bin/python
import base64, json, sys, types, zlib
from importlib.machinery import ModuleSpec

ARGUMENTS = json.loads(r"""<<INCLUDE_ANSIBLE_MODULE_JSON_ARGS>>""")
SOURCES = json.loads(zlib.decompress(base64.b64decode("%(sources)s")).decode())


class Sources:
    @staticmethod
    def find_spec(name, path=None, target=None):
        return ModuleSpec(name, Sources, is_package=not SOURCES[name]) if name in SOURCES else None

    @staticmethod
    def create_module(spec):
        return None

    @staticmethod
    def exec_module(module):
        exec(compile(SOURCES[module.__name__], module.__name__ + ".py", "exec", dont_inherit=True), module.__dict__)


class AnsibleModule:
    def __init__(self, argument_spec, supports_check_mode):
        self.check_mode = ARGUMENTS.get("_ansible_check_mode", False)
        self.params = {name: ARGUMENTS.get(name, spec.get("default")) for name, spec in argument_spec.items()}

    @staticmethod
    def exit_json(**result):
        print(json.dumps(result))
        sys.exit(0)


basic = types.ModuleType("ansible.module_utils.basic")
basic.AnsibleModule = AnsibleModule
sys.meta_path.insert(0, Sources)
sys.modules[basic.__name__] = basic
exec(compile(SOURCES["%(name)s"], "%(name)s.py", "exec", dont_inherit=True), {"__name__": "__main__"})
'''


def write(directory: Path) -> None:
    """Write each of `MODULES` as one script below `directory`, for ANSIBLE_LIBRARY."""
    directory.mkdir()
    for name in MODULES:
        (directory / f"{name}.py").write_text(script(name), "utf-8")


def script(name: str) -> str:
    """The text of the script for a module of `plugins/modules/`."""
    plugins = content.root() / "plugins"
    sources = {"ansible": "", "ansible.module_utils": "", name: (plugins / "modules" / f"{name}.py").read_text("utf-8")}
    waiting = [name]
    while waiting:
        for pair in _OURS.findall(sources[waiting.pop()]):
            needed = f"ansible.module_utils.{pair[0] or pair[1]}"
            if needed not in sources:
                file = plugins / "module_utils" / f"{needed.rpartition('.')[2]}.py"
                sources[needed] = file.read_text("utf-8")
                waiting.append(needed)
    packed = base64.b64encode(zlib.compress(json.dumps(sources).encode())).decode()
    return _SCRIPT % {"sources": packed, "name": name}
