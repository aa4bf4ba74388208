"""SGLang's own serving benchmark in a container beside the server's. Python 3.8, standard library.

The container has the server's image, its environment and its mounts (read only), the host's network, and no GPU. It
reaches no other network for the tokenizer, which is the one of the served model in its cache.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re

SECRETS = "/run/sglang-ops/secrets.env"  # of the server; the benchmark has no use for it
RESULTS = "/run/sglang-ops/bench"  # in the container
OUTPUT = "out.jsonl"
KEY = "key"  # file that the benchmark reads and deletes
_SECRET_FLAG = re.compile(r"^--([\w-]+[-_])?(api)?(key|token|secret|password)$", re.IGNORECASE)
# Its arguments are the server's, keys among them.
WITHHELD = ("server_info",)
# The program has another name before 0.5.16.
LAUNCH = """
import importlib.util, os, runpy
key = "/run/sglang-ops/bench/key"
if os.path.exists(key):
    with open(key) as stream:
        os.environ["OPENAI_API_KEY"] = stream.read()
    os.unlink(key)
def there(name):
    try:
        return importlib.util.find_spec(name)
    except ModuleNotFoundError:
        return None
name = "sglang.benchmark.serving"
runpy.run_module(name if there(name) else "sglang.bench_serving", run_name="__main__", alter_sys=True)
"""


def option(arguments, name):
    """Value of the last `name VALUE` or `name=VALUE`, None without."""
    found = None
    for position, argument in enumerate(arguments):
        if argument.startswith(name + "="):
            found = argument.partition("=")[2]
        elif argument == name and position + 1 < len(arguments):
            found = arguments[position + 1]
    return found


def shown(arguments):
    """The server's arguments without secrets, as sglang_ops.spec.secret_flags has them. Pure."""
    told, before = [], ""
    for word in arguments:
        flag, equals, _ = word.partition("=")
        if equals and _SECRET_FLAG.match(flag):
            told.append(flag + "=(hidden)")
        elif _SECRET_FLAG.match(before) and not word.startswith("--"):
            told.append("(hidden)")
        else:
            told.append(word)
        before = word
    return told


def tokenizer(record):
    """Where the container finds the tokenizer of the served model. Pure."""
    content = record["content"]
    named = option(content["argv"], "--tokenizer-path")
    if named:
        return named
    model, environment = content["model"], content["environment"]
    if not model.get("repo"):
        return option(content["argv"], "--model-path") or model.get("directory")
    if not model.get("commit"):
        return model["repo"]
    hub = environment.get("HF_HUB_CACHE") or os.path.join(environment.get("HF_HOME", ""), "hub")
    return os.path.join(hub, "models--" + model["repo"].replace("/", "--"), "snapshots", model["commit"])


def mounts(inspected):
    """(source, target) of the server's bind mounts, from what `inspect` says of them. Pure."""
    found = [(item["Source"], item["Destination"]) for item in inspected if item.get("Type") == "bind"]
    return [(source, target) for source, target in found if target != SECRETS]


def mount(source, target, read_only=True):
    """The value of `--mount`, one CSV record. Pure."""
    fields = ["type=bind", "source=" + source, "target=" + target] + (["readonly"] if read_only else [])
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(fields)
    return line.getvalue()


def command(record, binds, name, directory, arguments):
    """The container's command for one point. Pure."""
    gate, content = record["gate"], record["content"]
    environment = dict(content["environment"], HF_HUB_OFFLINE="1", HOME=RESULTS, PYTHONWARNINGS="ignore")
    words = [record["engine"], "run", "--rm", "--name", name, "--init", "--pull", "never", "--network", "host"]
    for key, value in sorted(environment.items()):
        words += ["--env", "%s=%s" % (key, value)]
    for source, target in binds:
        words += ["--mount", mount(source, target)]
    words += ["--mount", mount(directory, RESULTS, read_only=False), "--entrypoint", "python3", content["image"]]
    words += ["-c", LAUNCH, "--backend", "sglang", "--base-url", "http://%s:%d" % (gate["address"], gate["port"])]
    where = tokenizer(record)
    words += ["--model", where, "--tokenizer", where, "--served-model-name", gate["served_model_name"]]
    words += ["--output-file", os.path.join(RESULTS, OUTPUT), "--ready-check-timeout-sec", "30"]
    return words + list(arguments)


def read(text):
    """(numbers, the line to keep) of the benchmark's output file. Raises ValueError where there is no result. Pure."""
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise ValueError("it wrote no result")
    data = json.loads(lines[-1])
    kept = {key: _finite(value) for key, value in data.items() if key not in WITHHELD}
    numbers = {
        key: value for key, value in kept.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    return numbers, json.dumps(kept)


def _finite(value):
    """JSON knows no infinity; a rate of infinity is none."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def why(point, numbers):
    """What is wrong with a result, "" where nothing is. Pure."""
    done, wanted = numbers.get("completed", 0), point["prompts"]
    return "" if done >= wanted else "%d of %d requests were answered" % (done, wanted)
