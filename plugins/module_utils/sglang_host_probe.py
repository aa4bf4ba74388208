"""The gate's questions to one service, in order; the first that is not answered ends the list.

unit → port → ready → model → answer → capacity. `/health` alone lies in both directions, the log line that SGLang is
ready is also printed by a server whose port was taken, and `/v1/models` answers before anything can be generated: so
all are asked, and `answer` is a real completion. `capacity` is asked where the record says how many tokens are
needed (`tokens_needed`). Python 3.8, standard library.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket

from ansible.module_utils import sglang_host_gateway as gateways
from ansible.module_utils import sglang_host_state as store
from ansible.module_utils import sglang_host_systemd as systemd
from ansible.module_utils.sglang_host_command import run

# /health sleeps one second, makes one token, and turns red only after 20 s of silence.
HEALTH_TIMEOUT = 25
PROMPT = "Say OK."
API_KEY = "SGLANG_OPS_API_KEY"  # as sglang_ops.spec.model.API_KEY


class Answer(Exception):
    """A layer's question was not answered as it must be."""


def layer(name, ok, detail):
    return {"name": name, "ok": ok, "detail": detail}


def ask(gate, properties, quick=False):
    """Layers asked of a service described by its `gate` record; `properties` are systemd's of its unit."""
    if gate.get("kind") == "gateway":
        return _of_gateway(gate, properties, quick)
    asked = []
    # Of several hosts that serve one model together the first alone can answer, and does only with all the others.
    for name, question in QUESTIONS[:1] if gate.get("rank") else QUESTIONS:
        asked.append(answered(name, question, gate, properties, quick))
        if not asked[-1]["ok"]:
            return asked
    if gate.get("tokens_needed") and not gate.get("rank"):
        asked.append(answered("capacity", _capacity, gate))
    return asked


def answered(name, question, *arguments):
    """The layer `name`: what `question` returns, or how it was not answered."""
    try:
        return layer(name, True, question(*arguments))
    except Answer as answer:
        return layer(name, False, str(answer))
    except socket.timeout:
        return layer(name, False, "no answer in time")
    except (OSError, http.client.HTTPException) as error:
        return layer(name, False, str(error) or type(error).__name__)


def _of_gateway(gate, properties, quick):
    """unit → port → ready of the router itself, then → workers → model → answer through one of its servers.

    That no server is there is no fault of the gateway: a look says so, a wait does not wait for it.
    """
    asked = []
    for name, question in (("unit", _unit), ("port", _port), ("ready", _alive)):
        asked.append(answered(name, question, gate, properties, quick))
        if not asked[-1]["ok"]:
            return asked
    try:
        states = [worker["is_healthy"] for worker in gateways.Router(gate).workers().values()]
    except gateways.GatewayError as error:
        return [*asked, layer("workers", False, str(error))]
    members = [url for url, state in gateways.members(gate["name"]).items() if state == "in"]
    said = "%d of %d servers healthy" % (sum(states), max(len(states), len(members)))
    if any(states):
        return [*asked, layer("workers", True, said), *through(gate, quick)]
    serving = not quick and any(gateways.ask(url, "/health", HEALTH_TIMEOUT)[0] == 200 for url in members)
    return [*asked, layer("workers", not members or not (quick or serving), said)]


def through(gate, quick=True):
    """Layers of what a client gets from a gateway."""
    asked = dict(gate, api_key=gateways.client_key(gate))
    named = answered("model", _model, asked, {}, quick)
    return [named, answered("answer", _answer, asked, {}, quick)] if named["ok"] else [named]


def _alive(gate, _properties, _quick):
    status = get(gate, "/health", 10)[0]
    if status != 200:
        raise Answer("/health %d" % status)
    return "/health 200"


def _unit(_gate, properties, _quick):
    state = systemd.state(properties)
    if state != "active":
        raise Answer("the unit is %s" % state)
    return "active, %s restarts" % properties.get("NRestarts", "0")


def _port(gate, _properties, quick):
    with socket.create_connection((gate["address"], gate["port"]), timeout=5):
        pass
    if quick:
        return "%d open" % gate["port"]
    pid = container_pid(gate)
    owner = listener(gate["port"])
    if pid and owner and not descends(owner[0], pid):
        raise Answer("port %d is held by %s (pid %d), which is not this service" % (gate["port"], owner[1], owner[0]))
    return "%d open, held by this service" % gate["port"]


def _ready(gate, _properties, quick):
    health = gate["endpoints"]["health"]
    path = "/ready"
    status = get(gate, path, 10)[0]
    if status == 404:  # before SGLang 0.5.20
        path = health
        status = get(gate, path, HEALTH_TIMEOUT)[0]
    elif status == 200 and not quick:
        path = "%s 200, %s" % (path, health)
        status = get(gate, health, HEALTH_TIMEOUT)[0]
    if status != 200:
        raise Answer("%s %d" % (path, status))
    return "%s 200" % path


def _model(gate, _properties, _quick):
    status, body = get(gate, "/v1/models", 10)
    if status != 200:
        raise Answer("/v1/models answers %d" % status)
    names = [item.get("id") for item in parse(body, "/v1/models").get("data", [])]
    if gate["served_model_name"] not in names:
        shown = ", ".join(map(str, names)) or "nothing"
        raise Answer("/v1/models names %s, not %s" % (shown, gate["served_model_name"]))
    return "/v1/models names %s" % gate["served_model_name"]


def _answer(gate, _properties, quick):
    chat = {"messages": [{"role": "user", "content": PROMPT}]}
    wanted = [(gate["endpoints"]["chat"], chat)]
    if not quick:
        wanted.append((gate["endpoints"]["completions"], {"prompt": PROMPT}))
    said = []
    common = {"model": gate["served_model_name"], "max_tokens": 1 if quick else 8, "temperature": 0}
    for path, body in wanted:
        status, text = post(gate, path, dict(body, **common), 15 if quick else 120)
        if status == 400 and "chat template" in text.lower():
            said.append("%s: the model has no chat template" % path)
            continue
        if status != 200:
            raise Answer("%s answers %d: %s" % (path, status, text.strip()[:200]))
        said.append("%s: %d tokens" % (path, generated(parse(text, path), path)))
    return ", ".join(said)


def _capacity(gate):
    """Whether the KV cache holds one request of full length: a server starts and turns healthy with any."""
    needed, tokens = gate["tokens_needed"], cache_tokens(gate)
    if tokens is None:
        return "not asked: this server does not say what its KV cache holds"
    if tokens < needed:
        raise Answer("the KV cache holds %d tokens, one request of the full context length needs %d. Raise "
                     "--mem-fraction-static, or lower --context-length to %d" % (tokens, needed, tokens))
    return "%d tokens of KV cache, %d requests of %d" % (tokens, tokens // needed, needed)


def cache_tokens(gate):
    """Tokens in the KV cache, of the data-parallel rank with the smallest; None where the server does not say.

    /v1/loads tells since SGLang 0.5.10, the others before; what else they tell holds keys and goes nowhere.
    """
    for path in ("/v1/loads", "/server_info", "/get_server_info"):
        status, text = get(gate, path, 10)
        try:
            reply = json.loads(text) if status == 200 else {}
            told = [rank["max_total_num_tokens"] for rank in reply.get("loads") or [reply]]
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        if told and all(isinstance(tokens, int) for tokens in told):
            return min(told)
    return None


QUESTIONS = (("unit", _unit), ("port", _port), ("ready", _ready), ("model", _model), ("answer", _answer))


def generated(reply, path):
    """Number of tokens in a completion; refuses what is not an OpenAI-style completion."""
    try:
        choice = reply["choices"][0]
        text = choice["message"]["content"] if "message" in choice else choice["text"]
        tokens = reply["usage"]["completion_tokens"]
    except (KeyError, IndexError, TypeError):
        shown = json.dumps(reply)[:120]
        raise Answer("%s answers 200 with something that is no completion: %s" % (path, shown)) from None
    if not isinstance(tokens, int) or tokens < 1 or not isinstance(text, (str, type(None))):
        raise Answer("%s answers 200 without a token" % path)
    return tokens


def parse(text, path):
    try:
        reply = json.loads(text)
    except ValueError:
        reply = None
    if not isinstance(reply, dict):
        raise Answer("%s answers 200 with something that is not JSON: %r" % (path, text[:80]))
    return reply


def get(gate, path, timeout):
    return request(gate, "GET", path, None, timeout)


def post(gate, path, body, timeout):
    return request(gate, "POST", path, json.dumps(body), timeout)


def api_key(gate):
    """The key that the service asks its clients for, "" where it asks for none."""
    if gate.get("api_key") or not (gate.get("name") and gate.get("release")):
        return gate.get("api_key") or ""
    key = store.secret(gate["name"], gate["release"], API_KEY)
    if key:
        return key
    words = (store.read_record(gate["name"], gate["release"]).get("content") or {}).get("argv") or []
    at = [place for place, word in enumerate(words) if word.partition("=")[0] == "--api-key"]
    return (words[at[-1]].partition("=")[2] or "".join(words[at[-1] + 1 : at[-1] + 2])) if at else ""


def request(gate, method, path, body, timeout):
    """(status, text) of one HTTP request to the service."""
    connection = http.client.HTTPConnection(gate["address"], gate["port"], timeout=timeout)
    headers = {"Content-Type": "application/json"} if body else {}
    key = api_key(gate)
    if key:
        headers["Authorization"] = "Bearer " + key
    try:
        connection.request(method, path, body=body, headers=headers)
        response = connection.getresponse()
        return response.status, response.read().decode("utf-8", "replace")
    finally:
        connection.close()


def container_pid(gate):
    """The host's pid of the container's first process, None where the engine knows no such container."""
    output = run(gate["engine"], "inspect", "--format", "{{.State.Pid}}", gate["name"]).stdout.strip()
    return int(output) if output.isdigit() and output != "0" else None


def listener(port):
    """(pid, process name) of who listens on a TCP port, None where nobody does or it cannot be told."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(table, encoding="ascii") as stream:
                rows = [line.split() for line in stream][1:]
        except OSError:
            continue
        inodes.update(row[9] for row in rows if row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port)
    wanted = {"socket:[%s]" % inode for inode in inodes}
    return _holder(wanted) if wanted else None


def _holder(sockets):
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if any(_link("/proc/%s/fd/%s" % (pid, handle)) in sockets for handle in _listed("/proc/%s/fd" % pid)):
            with contextlib.suppress(OSError), open("/proc/%s/comm" % pid, encoding="utf-8") as stream:
                return int(pid), stream.read().strip()
    return None


def _listed(directory):
    """What is in it, nothing where it has gone or is somebody else's."""
    try:
        return os.listdir(directory)
    except OSError:
        return []


def _link(path):
    """Where it leads, "" for one that has gone: a server closes connections while its others are looked at."""
    try:
        return os.readlink(path)
    except OSError:
        return ""


def descends(pid, ancestor):
    """Whether process `pid` is `ancestor` or a descendant of it."""
    while pid > 1 and pid != ancestor:
        try:
            with open("/proc/%d/stat" % pid, encoding="utf-8") as stream:
                pid = int(stream.read().rpartition(")")[2].split()[1])
        except OSError:
            return False
    return pid == ancestor
