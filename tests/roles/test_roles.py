"""House rules for roles and playbooks that ansible-lint does not know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
ROLES = sorted(path for path in (ROOT / "roles").iterdir() if path.is_dir())
OWN_MODULES = {path.stem for path in (ROOT / "plugins" / "modules").glob("*.py")}
OWN_ACTIONS = {path.stem for path in (ROOT / "plugins" / "action").glob("*.py")}
# Words that may stand beside the module in a task.
KEYWORDS = {
    "any_errors_fatal", "always", "become", "block", "changed_when", "check_mode", "delegate_to", "failed_when",
    "loop", "loop_control", "name", "no_log", "notify", "register", "rescue", "retries", "run_once", "tags", "until",
    "vars", "when",
}


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def tasks_in(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = []
    for item in items:
        found.append(item)
        for part in ("block", "rescue", "always"):
            found += tasks_in(item.get(part, []))
    return found


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_argument_specs_equal_the_defaults(role: Path) -> None:
    options = read(role / "meta" / "argument_specs.yml")["argument_specs"]["main"]["options"]
    declared = {name: option.get("default") for name, option in options.items() if not option.get("required")}
    assert read(role / "defaults" / "main.yml") == declared


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_variables_carry_the_role_prefix_and_are_used(role: Path) -> None:
    text = "".join(path.read_text() for path in (role / "tasks").glob("*.yml"))
    for name in read(role / "defaults" / "main.yml"):
        assert name.startswith(role.name)
        assert name in text, f"{name} has no effect"


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_only_builtin_and_own_modules_and_every_assert_explains_itself(role: Path) -> None:
    for path in (role / "tasks").glob("*.yml"):
        lines = path.read_text().count("\n")
        assert lines <= 60, f"{path.name} has {lines} lines"
        for task in tasks_in(read(path)):
            (module,) = set(task) - KEYWORDS or {"block"}
            assert module in OWN_MODULES | OWN_ACTIONS | {"block"} or module.startswith("ansible.builtin."), module
            if module == "ansible.builtin.assert":
                assert task[module].get("fail_msg")


@pytest.mark.parametrize("playbook", sorted((ROOT / "playbooks").glob("*.yml")), ids=lambda path: path.stem)
def test_playbooks_hold_roles_only(playbook: Path) -> None:
    for play in read(playbook):
        assert play["gather_facts"] is False
        assert all("ansible.builtin.import_role" in task for task in play.get("tasks", []))
        assert play.get("roles") or play.get("tasks")


@pytest.mark.parametrize("name", sorted(OWN_MODULES))
def test_own_modules_support_check_mode_and_document_every_option(name: str) -> None:
    text = (ROOT / "plugins" / "modules" / f"{name}.py").read_text()
    assert "supports_check_mode=True" in text
    documented = yaml.safe_load(text.split('DOCUMENTATION = r"""')[1].split('"""')[0])
    assert documented["module"] == name
    for option in documented["options"]:
        assert f'"{option}"' in text
