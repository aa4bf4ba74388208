"""Lock a host for as long as the run lasts; or, with the module of the same name, see who has it, or release it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from ansible import constants as C  # noqa: N812 (Ansible's own name for it)
from ansible import context
from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

try:
    import sglang_ops  # noqa: F401
except ImportError:  # plain ansible-playbook in a checkout
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from sglang_ops import holding
from sglang_ops.action_inputs import plain
from sglang_ops.ansible_action import CONNECTIONS

# Ansible loads this before it forks the workers.
LIFE = holding.Life()


class ActionModule(ActionBase):
    """Arguments: `state` (held, query, released), `wait` and `settle` in seconds, `planned`: the generation of the
    lock when the host was planned, `hosts`: those that will ask, in their order. Held already by this run, it costs
    nothing."""

    TRANSFERS_FILES = False
    _requires_connection = True
    _supports_check_mode = True

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        given = plain(self._task.args)
        if given.get("state", "held") != "held":
            return result | self._execute_module(module_args=given, task_vars=variables)
        if self._task.check_mode:
            return result | {"changed": False, "sglang_ops": {"kind": "lock", "executions": 0}}
        host = str(self._task.delegate_to or variables["inventory_hostname"])
        if self._connection.transport not in CONNECTIONS:
            Display().warning(f"{host}: nobody can be kept out over a connection of kind {self._connection.transport}.")
            return result | {"changed": False, "sglang_ops": {"kind": "lock", "executions": 0}}
        return result | self._hold(host, given, variables)

    def _hold(self, host: str, given: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
        asked = {
            "identity": holding.identity(str(context.CLIARGS["args"][0])),
            "wait": float(given.get("wait") or 0),
            "settle": float(given.get("settle") or 0),
            "turn": True,
        }
        told: list[str] = []

        def heard(line: dict[str, Any]) -> None:
            detail = f"for {holding.described(line['waiting'])}" if "waiting" in line else SETTLING
            if not holding.tell(host, detail) and told[-1:] != [detail]:
                Display().display(f"{host}: waiting {detail}")
            told.append(detail)

        command, text = holding.holder(self._interpreter(variables), asked)
        request = {"host": host, "input": text, **asked, **self._reach(command)}
        if "hosts" in given:
            request["hosts"] = given["hosts"]
        answer = holding.ask(LIFE.keeper(Path(C.DEFAULT_LOCAL_TMP)), request, heard)
        own: dict[str, Any] = {"kind": "lock", "executions": 0 if answer.get("already") else 1}
        if "held" in answer:
            moved = bool(given.get("planned")) and answer["before"] not in ("", given["planned"])
            return {"changed": False, "moved": moved, "sglang_ops": own}
        if "skipped" in answer:  # somebody has a host before this one, which says so
            return {"changed": False, "moved": False, "sglang_ops": own}
        if "busy" in answer:
            own["holder"] = answer["busy"]
            message = f"{host} is locked by {holding.described(answer['busy'])}. Wait for it with --lock-wait SECONDS."
            return {"failed": True, "msg": message, "exit_hint": 5, "sglang_ops": own}
        if "unfinished" in answer:
            numbers = ", ".join(map(str, answer["unfinished"])) or "?"
            within = f"within {asked['settle']:.0f} s"
            message = f"on {host}, work of a run that is gone has not ended {within} (process {numbers})."
            return {"failed": True, "msg": message, "exit_hint": 5, "sglang_ops": own}
        if self._task.delegate_to:  # the first host, for the fleet: what is wrong with it is told in its own turn
            return {"changed": False, "sglang_ops": {**own, "executions": 0}}
        said = str(answer.get("said") or "")
        if answer.get("ended") == SSH_FAILED:
            raise AnsibleConnectionFailure(f"Failed to connect to the host via ssh: {said}")
        return {"failed": True, "msg": said or f"The lock's holder on {host} ended with {answer.get('ended')}."}

    def _interpreter(self, variables: dict[str, Any]) -> str:
        """Ansible's Python on the host, without the execution that discovering it would cost."""
        delegated = (variables.get("ansible_delegated_vars") or {}).get(self._task.delegate_to) or {}
        known = (delegated if self._task.delegate_to else variables).get("ansible_python_interpreter")
        found = str(self._templar.template(known)) if known else str(C.config.get_config_value("INTERPRETER_PYTHON"))
        return found if found.startswith("/") else "python3"

    def _reach(self, command: str) -> dict[str, Any]:
        """How the keeper reaches the host: Ansible's own command, and sudo's password where one is asked for."""
        connection, become = self._connection, self._connection.become
        password = prompt = None
        if become:
            command = become.build_become_command(command, connection._shell)  # noqa: SLF001 - as ActionBase does
            password, prompt = become.get_option("become_pass"), become.prompt
        argv: list[str] = ["/bin/sh", "-c", command]
        if connection.transport == "ssh":
            program = connection.get_option("ssh_executable")
            typed = connection.get_option("password")
            if typed:  # the connection that Ansible keeps open needs no password any more
                self._low_level_execute_command("true", sudoable=False)
            host = connection.get_option("host") or self._play_context.remote_addr
            words = connection._build_command(program, "ssh", "-T", host, command)  # noqa: SLF001
            argv = [os.fsdecode(word) for word in words]
            argv = argv[argv.index(program) :]  # without sshpass
        return {"argv": argv, "password": password, "prompt": prompt}


SETTLING = "for work of a run that is gone"
SSH_FAILED = 255
