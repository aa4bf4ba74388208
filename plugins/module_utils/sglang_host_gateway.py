"""A gateway on this host: its control key, its members, and what its router says of them. Python 3.8, stdlib.

    /var/lib/sglang-ops/services/<gateway>/gateway/control-plane.key   made here, never leaves the host, mode 0600
    /var/lib/sglang-ops/services/<gateway>/gateway/members.json        {URL: "in", "out" (rolled) or "drained"}

The directory is mounted in the router's container: after a restart or a reboot it begins with its members.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import os
import secrets
import socket
import time

from ansible.module_utils import sglang_host_state as store

API_KEY = "SGLANG_OPS_GATEWAY_API_KEY"  # as sglang_ops.spec.gateway.API_KEY
DRAINED = "/var/lib/sglang-ops/drained.json"
POLL_SECONDS = 0.2


class GatewayError(Exception):
    """The router did not do what it was asked; the text says what."""


def directory(name):
    return os.path.join(store.STATE, name, "gateway")


def prepare(name):
    """Make the gateway's directory and its control key where they are missing."""
    home = directory(name)
    os.makedirs(home, mode=0o700, exist_ok=True)
    path = os.path.join(home, "control-plane.key")
    if not os.path.exists(path):
        store.write_atomic(path, secrets.token_hex(24) + "\n", mode=0o600)


def members(name):
    """{URL: state} of the servers that the gateway has been told of."""
    text = store.read_text(os.path.join(directory(name), "members.json"))
    return json.loads(text) if text else {}


def remember(name, changes):
    """Note new states of members; None forgets one. Several hosts of a batch have theirs noted at the same time."""
    with _alone(name):
        known = members(name)
        kept = {url: state for url, state in dict(known, **changes).items() if state}
        if kept != known:
            store.write_atomic(os.path.join(directory(name), "members.json"), json.dumps(kept, sort_keys=True) + "\n")


@contextlib.contextmanager
def _alone(name):
    with open(os.path.join(directory(name), "members.lock"), "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def gate_of(name):
    """The gate's record of the gateway as it is deployed here, {} where there is none."""
    return store.read_record(name, store.read_state(name)["release"]).get("gate") or {}


def client_key(gate):
    """The key that clients send, "" where the gateway asks for none."""
    return store.secret(gate["name"], gate["release"], API_KEY)


class GatewayGone(GatewayError):
    """Nobody listens where the router should: it sends nothing to anybody."""


class Router:
    """The control plane of the router that runs here."""

    def __init__(self, gate):
        self.gate = gate
        text = store.read_text(os.path.join(directory(gate["name"]), "control-plane.key"))
        self._key = (text or "").strip()

    def request(self, method, path, body=None, timeout=10):
        """(status, parsed JSON or text). Raises GatewayError where nobody answers."""
        connection = http.client.HTTPConnection(self.gate["address"], self.gate["port"], timeout=timeout)
        headers = {"Authorization": "Bearer " + self._key, "Content-Type": "application/json"}
        try:
            connection.request(method, path, body=json.dumps(body) if body else None, headers=headers)
            response = connection.getresponse()
            text = response.read().decode("utf-8", "replace")
        except (OSError, http.client.HTTPException) as error:
            kind = GatewayGone if isinstance(error, ConnectionRefusedError) else GatewayError
            raise kind("%s does not answer on port %d: %s"
                       % (self.gate["name"], self.gate["port"], str(error) or type(error).__name__)) from None
        finally:
            connection.close()
        try:
            return response.status, json.loads(text)
        except ValueError:
            return response.status, text

    def workers(self):
        """{URL: what the router says of it}."""
        status, answer = self.request("GET", "/workers")
        if status != 200 or not isinstance(answer, dict):
            raise GatewayError("%s answers %d to a question for its servers" % (self.gate["name"], status))
        return {worker["url"]: worker for worker in answer["workers"]}

    def add(self, url):
        """Ask for a server to be registered; that it is accepted says nothing about the server."""
        status, answer = self.request("POST", "/workers", {"url": url})
        if status not in (200, 201, 202):
            raise GatewayError("%s refuses %s: %d %s" % (self.gate["name"], url, status, str(answer)[:200]))

    def remove(self, worker):
        """Requests in flight end where they are; new ones go elsewhere."""
        status, answer = self.request("DELETE", "/workers/" + worker["id"])
        if status not in (200, 202, 404):
            raise GatewayError("%s does not remove %s: %d %s" % (self.gate["name"], worker["url"], status,
                                                                 str(answer)[:200]))

    def wait(self, done, seconds):
        """Ask for the workers until `done(workers)`; the last answer, whether it was enough or not."""
        limit = time.monotonic() + seconds
        while True:
            try:
                listed = self.workers()
            except GatewayError:
                if time.monotonic() > limit:
                    raise
                listed = {}
            if done(listed) or time.monotonic() > limit:
                return listed
            time.sleep(POLL_SECONDS)


def facts(record, active, with_loads):
    """{"workers", "members"} for the host's facts; workers is None while the router does not answer."""
    name = record["name"]
    found = {"members": members(name), "workers": None}
    if active:
        try:
            listed = Router(record["gate"]).workers()
        except GatewayError:
            return found
        found["workers"] = [
            {"url": url, "healthy": bool(worker.get("is_healthy")), "load": load(url) if with_loads else None}
            for url, worker in sorted(listed.items())
        ]
    return found


def load(url):
    """Requests that run and wait on a server, by its own count; None where it does not say.

    The router's own count is not asked: it stays 0 under most policies.
    """
    status, text = ask(url, "/v1/loads", 5)
    try:
        ranks = json.loads(text)["loads"] if status == 200 else []
        return sum(int(rank.get("num_running_reqs") or 0) + int(rank.get("num_waiting_reqs") or 0) for rank in ranks)
    except (ValueError, KeyError, TypeError):
        return None


def ask(url, path, timeout):
    """(status, text) of a GET to a server; (0, why) where it does not answer."""
    host, _, port = url.partition("://")[2].rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=timeout)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode("utf-8", "replace")
    except (OSError, http.client.HTTPException) as error:
        return 0, str(error) or type(error).__name__
    finally:
        connection.close()


def listens(url):
    """Whether somebody takes connections there; what does not answer at all may be slow."""
    host, _, port = url.partition("://")[2].rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except ConnectionRefusedError:
        return False
    except OSError:
        pass
    return True


def drained():
    """Whether an operator has taken this host out of its gateways."""
    return os.path.exists(DRAINED)
