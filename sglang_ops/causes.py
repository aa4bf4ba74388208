"""One readable sentence out of what Ansible, ssh and sudo say.

Every pattern was taken from the messages of ansible-core 2.19 and OpenSSH 9; what is not known is passed on,
shortened to its first meaningful lines.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

_SSH = (
    (
        r'REMOTE HOST IDENTIFICATION HAS CHANGED[\s\S]*ssh-keygen -f "([^"]+)" -R "([^"]+)"',
        "its SSH host key has changed: reinstalled, or someone is in between. To accept: ssh-keygen -f {0} -R {1}",
    ),
    (
        r"REMOTE HOST IDENTIFICATION HAS CHANGED",
        "its SSH host key has changed: reinstalled, or someone is in between. To accept: ssh-keygen -R {target}",
    ),
    (
        r"Host key verification failed|No \S+ host key is known",
        "its SSH host key is not known here. Check it and accept it once: ssh {target}",
    ),
    (r"no such identity: ([^:\n]+): No such file", "the SSH key {0} does not exist"),
    (
        r"Too many authentication failures",
        "SSH refused the login: the agent offered too many keys. Name the right one in ansible_ssh_private_key_file",
    ),
    (
        r"Permission denied \(([^)]*)\)",
        "SSH refused the login (permission denied, {0}). Check ansible_user and ansible_ssh_private_key_file",
    ),
    (r"Could not resolve hostname ([^:\s]+)", "the name {0} cannot be resolved. Check ansible_host"),
    (
        r"connect to (?:host|address) (\S+) port (\d+): Connection refused",
        "nothing listens on {0} port {1} (connection refused)",
    ),
    (
        r"connect to (?:host|address) (\S+) port (\d+): (?:Connection|Operation) timed out",
        "{0} port {1} does not answer (time-out)",
    ),
    (r"connect to (?:host|address) (\S+) port (\d+): No route to host", "there is no route to {0} (port {1})"),
    (r"connect to (?:host|address) (\S+) port (\d+): ([^\n]+)", "{0} port {1}: {2}"),
    (
        r"timed out during banner exchange[\s\S]*Connection to (\S+) port (\d+)",
        "something listens on {0} port {1}, but no SSH server answers (time-out)",
    ),
    (
        r"banner exchange|kex_exchange_identification",
        "something that is not an SSH server, or an overloaded one, closed the connection",
    ),
    (
        r"[Cc]onnection (?:to \S+ )?(?:closed|reset)|Broken pipe|Timeout, server \S+ not responding",
        "the SSH connection was lost",
    ),
    (
        r"unix_listener|ControlPath|control socket",
        "SSH cannot open its control socket. Set ANSIBLE_SSH_CONTROL_PATH_DIR to a short path",
    ),
)

_SUDO = (
    (
        r"Missing sudo password|a password is required|Timeout .*waiting for privilege escalation prompt",
        "sudo asks for a password. Add -K (--ask-become-pass), or allow the user to use sudo without one",
    ),
    (r"Incorrect sudo password|Sorry, try again", "sudo refused the password"),
    (r"(\S+) is not in the sudoers file", "{0} may not use sudo"),
    (r"is not allowed to execute", "the user may not become root through sudo"),
    (r"sudo: (?:command )?not found|exec: sudo", "sudo is not installed. Install it, or connect as root"),
)

_INTERPRETER = (
    (
        r"module interpreter '([^']+)' was not found|(/\S*python\S*): (?:No such file|not found)",
        "there is no Python at {0}. Install python3, or set ansible_python_interpreter in the inventory",
    ),
)

_DIED = ("Module result deserialization failed", "MODULE FAILURE")


def unreachable(result: Mapping[str, Any], host: str) -> str:
    """Why a host could not be reached; `host` is its name in the inventory."""
    text = str(result.get("msg", ""))
    address = re.search(r'remote host "([^"]+)"', text)
    target = address.group(1) if address else host
    known = _translate(text, (*_SUDO, *_SSH), target)
    return known or _last_clause(text)


def no_access(result: Mapping[str, Any], host: str) -> str | None:
    """Why Ansible could log in but not work there: no sudo, no Python. None where that is not the cause.

    What our own modules report is theirs to word: a log they quote must not be taken for sudo's voice.
    """
    if "sglang_ops" in result:
        return None
    text = "\n".join(str(result.get(key) or "") for key in ("msg", "module_stderr", "module_stdout"))
    return _translate(text, (*_SUDO, *_INTERPRETER), host)


def failure(result: Mapping[str, Any]) -> str:
    """Why a task failed on a host."""
    result = _guilty_item(result)
    text = str(result.get("msg") or "").strip().removeprefix("Task failed: ")
    if "sglang_ops" in result:
        return text
    if result.get("censored"):
        return "the task failed and its output is hidden, because it carries secrets"
    if result.get("argument_errors"):
        return "; ".join(str(error) for error in result["argument_errors"])
    said = _last_clause("\n".join(str(result.get(key) or "") for key in ("module_stderr", "module_stdout", "stderr")))
    if text.startswith(_DIED):
        return f"the module died on the host: {said or 'it printed nothing'}"
    if text == "non-zero return code":
        command = result.get("cmd")
        shown = " ".join(map(str, command)) if isinstance(command, list) else str(command)
        return f"'{shown}' ended with {result.get('rc')}. {said}".rstrip()
    return text or said or "the task failed without a message"


def _guilty_item(result: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of a loop, the first item that failed."""
    items = result.get("results")
    if isinstance(items, Sequence) and not isinstance(items, str):
        return next((item for item in items if isinstance(item, Mapping) and item.get("failed")), result)
    return result


def _translate(text: str, table: Sequence[tuple[str, str]], target: str) -> str | None:
    for pattern, sentence in table:
        found = re.search(pattern, text)
        if found:
            groups = [group for group in found.groups() if group]
            return sentence.format(*groups, target=target)
    return None


def _last_clause(text: str) -> str:
    """ssh puts its reason last: the last line that is no banner or warning."""
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith(("Warning:", "@"))]
    return lines[-1] if lines else ""
