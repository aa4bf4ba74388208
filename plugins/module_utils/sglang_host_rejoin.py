"""A server that left a gateway to be changed comes back by itself, should whoever changes it die. Python 3.8, stdlib.

A transient timer of systemd on the gateway's host: after a time within which every change is over, it looks whether the
server is still noted as out, and registers it once it answers, asking again every minute. Joining takes the timer away.
"""

from __future__ import annotations

import hashlib
import sys

from ansible.module_utils import sglang_host_gateway as gateways
from ansible.module_utils.sglang_host_command import run

AGAIN_SECONDS = 60

# What the timer starts: a script of its own, for the modules are gone by then. It reads the key where it is kept.
SCRIPT = r"""
import http.client, json, os, subprocess, sys, tempfile
home, address, port, url, timer = sys.argv[1:]
path = os.path.join(home, "members.json")

def members():
    try:
        return json.load(open(path, encoding="utf-8"))
    except (OSError, ValueError):
        return {}

def ask(target, method, where, body=None, headers=None):
    connection = http.client.HTTPConnection(target, timeout=30)
    try:
        connection.request(method, where, body=body, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()

def nonsense(target):
    "Whether a server answers, but with what is no completion; one that wants a key is not asked."
    status, text = ask(target, "GET", "/v1/models")
    if status != 200:
        return status >= 500
    try:
        wanted = {"model": json.loads(text)["data"][0]["id"], "prompt": "1", "max_tokens": 1}
        status, text = ask(target, "POST", "/v1/completions", json.dumps(wanted), {"Content-Type": "application/json"})
        return status >= 500 or (status == 200 and not json.loads(text)["choices"])
    except (ValueError, KeyError, IndexError, TypeError):
        return True

if members().get(url) == "out":
    server = url.partition("://")[2]
    if ask(server, "GET", "/health")[0] != 200 or nonsense(server):
        sys.exit(0)
    key = open(os.path.join(home, "control-plane.key"), encoding="utf-8").read().strip()
    headers = {"Authorization": "Bearer " + key, "Content-Type": "application/json"}
    if ask(address + ":" + port, "POST", "/workers", json.dumps({"url": url}), headers)[0] not in (200, 201, 202):
        sys.exit(1)
    handle, new = tempfile.mkstemp(dir=home)
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        json.dump(dict(members(), **{url: "in"}), stream, sort_keys=True)
    os.replace(new, path)
    print(url + " had been out since a change that nobody finished; registered again")
if timer:
    subprocess.call(["systemctl", "stop", timer])
"""


def timer(gateway, url):
    """Name of the timer, without suffix, of a server behind a gateway."""
    return "sglang-ops-rejoin-" + hashlib.sha256((gateway + " " + url).encode()).hexdigest()[:12]


def arm(gate, urls, seconds):
    """Have the servers `urls` registered again with the gateway of `gate` after `seconds`, unless they have joined."""
    for url in urls:
        name = timer(gate["name"], url)
        disarm(gate, [url])
        described = "Register %s with %s again, should nobody else" % (url, gate["name"])
        timed = ("--on-active", str(seconds), "--on-unit-inactive", str(AGAIN_SECONDS))
        run("systemd-run", "--quiet", "--collect", "--unit", name, "--description", described, *timed,
            "--timer-property", "AccuracySec=1s", sys.executable, "-c", SCRIPT, gateways.directory(gate["name"]),
            gate["address"], str(gate["port"]), url, name + ".timer")


def disarm(gate, urls):
    """They have joined, or are to stay out."""
    run("systemctl", "stop", *[timer(gate["name"], url) + ".timer" for url in urls])
