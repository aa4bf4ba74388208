"""The arguments that an SGLang image accepts, as its own parser lists them. Python 3.8, standard library.

    /var/lib/sglang-ops/arguments/<sha256 digits>.json    what an image answered; an image never changes its answer
"""

from __future__ import annotations

import json
import os
import re

from ansible.module_utils.sglang_host_command import TIMED_OUT, run
from ansible.module_utils.sglang_host_state import read_text, write_atomic

STORE = "/var/lib/sglang-ops/arguments"
TIMEOUT = 120  # seconds; the import of PyTorch takes most of them where the image has just been unpacked
MARK = "sglang-ops arguments: "  # SGLang and its libraries print on their own account

# Run where SGLang can be imported: lists the actions of its parser. What argparse would fill in by itself is left
# out (a destination made from the first flag, the default action, no default); so are help texts, but for
# deprecated options. An option that is refused when it is used is asked for its words by using it.
_SCRIPT = r'''
import argparse, json

class Refusal(Exception):
    pass

class Probe(argparse.ArgumentParser):
    def error(self, message):
        raise Refusal(message)

def plain(value):
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)

def simple(value):
    if isinstance(value, (list, tuple)):
        return all(simple(item) for item in value)
    return isinstance(value, (str, int, float, bool)) and value is not argparse.SUPPRESS

def choices(action):
    listed = [getattr(choice, "value", choice) for choice in action.choices]
    return sorted(listed, key=str) if isinstance(action.choices, (set, frozenset)) else listed

def refusal(action):
    try:
        action(Probe(), argparse.Namespace(), [] if action.nargs == 0 else "x", action.option_strings[0])
    except (Refusal, ValueError) as error:
        return str(error)

def describe(action):
    kind = type(action).__name__
    entry = {
        "flags": list(action.option_strings),
        "action": kind,
        "nargs": action.nargs,
        "const": plain(getattr(action, "const_value", None) or action.const),
        "required": action.required or None,
        "type": getattr(action.type, "__name__", action.type and "unknown"),
        "choices": None if action.choices is None else plain(choices(action)),
        "default": plain(action.default) if simple(action.default) else None,
    }
    if action.dest != action.option_strings[0].lstrip("-").replace("-", "_"):
        entry["dest"] = action.dest
    text = " ".join((action.help or "").split())
    if "Deprecated" in kind or text.lower().lstrip("[(").startswith("deprecated"):
        entry["help"] = None if text in ("", argparse.SUPPRESS) else text
        entry["new_flag"] = getattr(action, "new_flag", None)
        entry["refuses"] = refusal(action) if kind == "DeprecatedAction" else None
    usual = {"action": "_StoreAction", "type": "str"}
    if kind == "_StoreTrueAction":
        usual = {"nargs": 0, "const": True, "default": False}
    if kind == "BooleanOptionalAction":
        usual = {"nargs": 0}
    return {key: value for key, value in entry.items() if value is not None and usual.get(key) != value}

def listed():
    from sglang.srt.server_args import ServerArgs
    from sglang.version import __version__
    parser = argparse.ArgumentParser(prog="sglang", add_help=True)
    ServerArgs.add_cli_args(parser)
    return {"sglang": __version__, "options": [describe(action) for action in parser._actions]}

print("\n" + MARK + json.dumps(listed(), sort_keys=True))
'''


def script() -> str:
    """Python source that prints the list as the last thing it does; see `answer_in`."""
    return "MARK = %r\n%s" % (MARK, _SCRIPT)


def answer_in(output: str):
    """{"sglang": release, "options": [...]} from what the script printed, None where it printed no list."""
    for line in reversed(output.splitlines()):
        if line.startswith(MARK):
            try:
                return json.loads(line[len(MARK):])
            except ValueError:
                return None
    return None


def path(digest_ref: str) -> str:
    """Where the list of the image `name@sha256:…` is kept. Raises ValueError for what is no digest."""
    digits = digest_ref.rpartition("@sha256:")[2]
    if not re.match(r"^[0-9a-f]{64}$", digits):
        raise ValueError("%s is not an image by digest." % digest_ref)
    return os.path.join(STORE, digits + ".json")


def known(digest_ref: str):
    """What the image answered when it was asked, None where it never was. A damaged file counts as none."""
    text = read_text(path(digest_ref))
    try:
        return json.loads(text) if text else None
    except ValueError:
        return None


def known_of(digest_refs):
    """{image: list} for those of the images that were asked."""
    found = {ref: known(ref) for ref in digest_refs}
    return {ref: listed for ref, listed in found.items() if listed is not None}


def ask(engine: str, digest_ref: str):
    """Have an image that is on the host list its arguments, and keep the answer; returns why it did not, or None.

    The container has no network and no GPU, and nothing of the host is mounted in it.
    """
    name, done = "sglang-ops-ask-%d" % os.getpid(), None
    try:
        done = run(
            engine, "run", "--rm", "--name", name, "--network", "none", "--pull", "never",
            "--env", "CUDA_VISIBLE_DEVICES=", "--entrypoint", "python3", digest_ref, "-c", script(), timeout=TIMEOUT,
        )
    finally:
        if done is None or done.rc == TIMED_OUT:  # the client is gone, its container is not
            run(engine, "rm", "--force", name)
    found = answer_in(done.stdout) if done.ok else None
    if found is None:
        return "%s does not say which arguments it accepts: %s." % (digest_ref, _told(done).rstrip("."))
    write_atomic(path(digest_ref), json.dumps(found, sort_keys=True) + "\n")
    return None


def _told(done) -> str:
    """The last line that says something; engines add where to find their help."""
    lines = [line for line in done.stderr.splitlines() if line.strip() and not re.match("(See|Run) '", line)]
    return lines[-1].strip() if lines else done.error
