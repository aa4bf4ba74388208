"""A server that left a gateway to be changed comes back by itself, should whoever changes it die. Python 3.8, stdlib.

A timer of systemd on the gateway's host: after a time within which every change is over, it looks whether the server is
still noted as out, and registers it once it answers, asking again every minute. Joining takes the timer away. After a
reboot of that host its time begins anew.

    /var/lib/sglang-ops/rejoin.py                              what the timers start
    /etc/systemd/system/sglang-ops-rejoin-*.{service,timer}    one pair for each server that is out
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys

from ansible.module_utils import sglang_host_gateway as gateways
from ansible.module_utils import sglang_host_state as store
from ansible.module_utils import sglang_host_systemd as systemd

AGAIN_SECONDS = 60
PROGRAM = "/var/lib/sglang-ops/rejoin.py"

# A program of its own, for the modules are gone by then. It reads the key where it is kept.
SCRIPT = r"""
import contextlib, fcntl, http.client, json, os, subprocess, sys, tempfile
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
    with open(os.path.join(home, "members.lock"), "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        handle, new = tempfile.mkstemp(dir=home)
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            json.dump(dict(members(), **{url: "in"}), stream, sort_keys=True)
        os.replace(new, path)
    print(url + " had been out since a change that nobody finished; registered again")
if timer:
    subprocess.call(["systemctl", "disable", "--quiet", "--now", timer + ".timer"])
    for kind in (".timer", ".service"):
        with contextlib.suppress(OSError):
            os.unlink("/etc/systemd/system/" + timer + kind)
    subprocess.call(["systemctl", "daemon-reload"])
"""

SERVICE = """[Unit]
Description=Register {url} with {gateway} again, should nobody else

[Service]
Type=oneshot
ExecStart={python} {program} {home} {address} {port} {url} {name}
"""
TIMER = """[Unit]
Description=Register {url} with {gateway} again, should nobody else

[Timer]
OnActiveSec={seconds}
OnUnitInactiveSec={again}
AccuracySec=1s

[Install]
WantedBy=timers.target
"""


def timer(gateway, url):
    """Name of the timer, without suffix, of a server behind a gateway."""
    return "sglang-ops-rejoin-" + hashlib.sha256((gateway + " " + url).encode()).hexdigest()[:12]


def files(name):
    """Paths of the timer and of what it starts."""
    return [os.path.join(store.UNITS, name + kind) for kind in (".timer", ".service")]


def arm(gate, urls, seconds):
    """Have the servers `urls` registered again with the gateway of `gate` after `seconds`, unless they have joined.

    Raises GatewayError where systemd refuses.
    """
    disarm(gate, urls)
    if store.read_text(PROGRAM) != SCRIPT:
        store.write_atomic(PROGRAM, SCRIPT)
    for url in urls:
        name = timer(gate["name"], url)
        values = {"name": name, "url": url, "gateway": gate["name"], "address": gate["address"], "port": gate["port"],
                  "home": gateways.directory(gate["name"]), "python": sys.executable, "program": PROGRAM,
                  "seconds": seconds, "again": AGAIN_SECONDS}
        timed, started = files(name)
        store.write_atomic(timed, TIMER.format(**values))
        store.write_atomic(started, SERVICE.format(**values))
    systemd.systemctl("daemon-reload")
    error = systemd.systemctl("enable", "--quiet", "--now", *[timer(gate["name"], url) + ".timer" for url in urls])
    if error:
        raise gateways.GatewayError("nothing would bring %s back, should this run die: %s" % (", ".join(urls), error))


def disarm(gate, urls):
    """They have joined, or are to stay out."""
    armed = [name for name in (timer(gate["name"], url) for url in urls) if os.path.exists(files(name)[0])]
    if not armed:
        return
    systemd.systemctl("disable", "--quiet", "--now", *[name + ".timer" for name in armed])
    for path in (path for name in armed for path in files(name)):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    systemd.systemctl("daemon-reload")
