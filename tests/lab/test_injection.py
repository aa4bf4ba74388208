"""What a deployment file says arrives in a real container byte for byte: no quoting, templating or shell eats at it.

The first half starts containers from units of our own rendering, full of strings that hypothesis makes up; the
program in them writes down what it was given. The second half deploys nasty values through the command line.
"""

from __future__ import annotations

import base64
import json
import shlex
import subprocess
import tempfile
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import yaml
from ansible.module_utils import sglang_host_state as store
from conftest import Lab
from hypothesis import HealthCheck, Phase, example, given, seed, settings
from hypothesis import strategies as st

from sglang_ops.planning import ResolvedImage, Settings
from sglang_ops.planning.command import Mount, exec_start
from sglang_ops.planning.systemd import Unit

pytestmark = pytest.mark.lab
QUICK = ("-e", "sglang_server_soak=0", "-e", "sglang_server_start_timeout=60", "-e", "sglang_server_drain_timeout=5")
ENGINES = ("docker", "podman")

# Each means something to one of those who handle it: shells, systemd, CSV, Jinja, YAML, Go templates, flag parsers.
NASTY = (
    "", " ", " a  b ", "'", '"', "''", '"a" b', "\\", "a\\", "\\n", "\\x41", "\n", "a\n", "a\nUser=nobody", "a \\\nb",
    "\r\n", "\t", "\v\f\b\a\x1b[31m", "\x7f", "\x85\u2028\u2029", "\ufeff", "é 日本 🎉",
    "$HOME", "${HOME}", "$$", "$", "$(touch /out/owned)", "`touch /out/owned`", "; touch /out/owned", "&& false",
    "|| :", "> /out/owned", "%n", "%%", "%", "%i", "{{ 7 * 7 }}", "{{ lookup('pipe', 'id') }}", "{% if x %}", "{# x #}",
    "!unsafe x", "&x", "*", "?", "~", "#x", "-", "--", "-x", "--rm", "--entrypoint=sh", "=", "=x", "a=b", "@x", "a,b",
    "a:b", '","', "type=tmpfs", "null", "true", "0x10", "[1]", "(x)", "<x>", "x" * 3000,
)  # fmt: skip
# Neither a process nor systemd takes these; the deployment file refuses them.
REFUSED = "\0" + "".join(map(chr, [*range(0xFDD0, 0xFDF0), *(plane + end for plane in range(0, 0x110000, 0x10000)
                                                             for end in (0xFFFE, 0xFFFF))]))
TEXT = st.text(st.characters(exclude_characters=REFUSED, exclude_categories=["Cs"]), max_size=12)
# Paths of a deployment file are printable; these are parts of them.
PRINTABLE = st.characters(exclude_categories=["C", "Z"], exclude_characters="/") | st.just(" ")
PART = st.text(PRINTABLE, min_size=1, max_size=12).filter(lambda part: part not in {".", ".."})
PARTS = tuple(text for text in NASTY if text.isprintable() and "/" not in text and 0 < len(text) < 200)

PROGRAM = """
import json, os, signal
def read(path):
    with open(path, "rb") as given:
        return given.read().decode("latin-1")
mounts = [b"/mnt/%b/%b" % (part, name) for part in os.listdir(b"/mnt") for name in os.listdir(b"/mnt/" + part)]
seen = {
    "argv": read("/proc/self/cmdline").split("\\0")[3:-1],
    "environment": dict(entry.split("=", 1) for entry in read("/proc/self/environ").split("\\0")[:-1]),
    "mounts": {path.decode("latin-1"): read(path + b"/name") for path in mounts},
}
with open("/out/new", "w") as kept:
    json.dump(seen, kept)
os.rename("/out/new", "/out/seen")
signal.pause()
"""
START = """
systemctl daemon-reload
systemctl start inject
for i in $(seq 300); do test -e /srv/inject/out/seen && break; sleep 0.1; done
cat /srv/inject/out/seen || { journalctl -n 20 --no-pager -u inject >&2; exit 1; }
echo
ls /srv/inject/out
"""
REQUIRED = """
busctl --json=short get-property org.freedesktop.systemd1 /org/freedesktop/systemd1/unit/inject_2eservice \\
    org.freedesktop.systemd1.Unit RequiresMountsFor
"""
STOP = "systemctl stop inject; rm -rf /run/systemd/system/inject.service /srv/inject; systemctl daemon-reload"


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    """Two hosts that serve, the first with docker, the second with podman."""
    made = make_lab("t-inject", hosts=2, gpus=3, engine="docker", os="debian13", server="simulator")
    inventory = yaml.safe_load(made.inventory.read_text())
    inventory["all"]["hosts"][made.hosts[1]]["container_engine"] = "podman"
    made.inventory.write_text(yaml.safe_dump(inventory))
    done = made.deploy(None, *QUICK)
    assert done["ok"], json.dumps(done, indent=1)
    return made


@pytest.fixture(scope="module")
def image(lab: Lab) -> ResolvedImage:
    ref = lab.deployment["deployment"]["image"]
    return ResolvedImage(ref, f"{ref.rpartition(':')[0]}@{lab.json('status')['services'][0]['image_digest']}")


def root(lab: Lab, engine: str, script: str) -> str:
    """What a script of root's prints on the host with this engine. In latin-1, where every byte is one character."""
    command = ["ssh", "-F", str(lab.folder / "ssh" / "config"), lab.hosts[ENGINES.index(engine)], "sudo sh -es"]
    done = subprocess.run(command, input=script.encode(), capture_output=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return done.stdout.decode("latin-1")


def write(path: str, content: bytes) -> str:
    """Lines of a script that write a file, whatever its content is."""
    folder, where = shlex.quote(path.rpartition("/")[0]), shlex.quote(path)
    return f"mkdir -p {folder}; base64 -d > {where} <<'END'\n{base64.b64encode(content).decode()}\nEND\n"


def secrets_file(values: Mapping[str, str]) -> bytes:
    """The file that the module on the host writes for a release with these secrets."""
    with tempfile.TemporaryDirectory() as folder, patch.object(store, "STATE", folder):
        store.write_release("service", "release", "", {}, values)
        return Path(store.release_directory("service", "release"), "secrets.env").read_bytes()


def as_seen(text: str) -> str:
    """A text as `root` and the program in the container tell it: a character for each of its bytes."""
    return text.encode().decode("latin-1")


def all_arrive(lab: Lab, engine: str, image: ResolvedImage, words: Sequence[str], parts: Sequence[str]) -> None:
    """`words` as arguments, variables and secrets, `parts` in sources and targets of mounts: out as they went in."""
    # podman makes "\n" of "\r\n", so the deployment file refuses it where podman sees it.
    plain = {f"V{number}": word for number, word in enumerate(words) if "\r\n" not in word}
    secret = {f"S{number}": word for number, word in enumerate(words)}
    binds = [
        Mount(f"/srv/inject/{number}/{part}", f"/mnt/{number}/{part}", read_only=number % 2 == 0)
        for number, part in enumerate(parts)
    ]
    start = exec_start(
        engine=engine, engine_path=f"/usr/bin/{engine}", image=image, devices=(), environment=plain,
        bind=(Mount("/srv/inject/out", "/out"), *binds), argv=("python3", "-c", PROGRAM, *words),
        secrets_file="/srv/inject/secrets.env", settings=Settings(container_engine=engine, ulimits=()),
    )  # fmt: skip
    sources = tuple(mount.source for mount in binds)
    unit = Unit("injection", engine, f"/usr/bin/{engine}", start, sources, drain_timeout=1, restart_delay=60).render()
    laid = [write(f"{mount.source}/name", mount.target.encode()) for mount in binds]
    laid.append(write("/srv/inject/secrets.env", secrets_file(secret)))
    laid.append(write("/run/systemd/system/inject.service", unit.encode()))
    try:
        answer = root(lab, engine, "".join([*laid, "mkdir /srv/inject/out", START, REQUIRED]))
    finally:
        root(lab, engine, STOP)
    seen, *files, required = answer.split("\n")[:-1]
    told = json.loads(seen)
    assert told["argv"] == [as_seen(word) for word in words]
    given = {name: as_seen(word) for name, word in (plain | secret).items()}
    assert {name: value for name, value in told["environment"].items() if name in given} == given
    assert told["mounts"] == {as_seen(mount.target): as_seen(mount.target) for mount in binds}
    assert set(json.loads(required.encode("latin-1"))["data"]) == set(sources)
    assert files == ["seen"], "something was executed"


def made_up(examples: int) -> settings:
    """Each example is a container with some hundred strings."""
    return settings(
        max_examples=examples, deadline=None, database=None, phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip


STRINGS = given(words=st.lists(TEXT, min_size=90, max_size=100), parts=st.lists(PART, min_size=8, max_size=12))


@pytest.mark.parametrize("engine", ENGINES)
@seed(20)
@made_up(examples=1)
@STRINGS
@example(words=list(NASTY), parts=list(PARTS))
def test_every_byte_arrives_in_the_container(
    lab: Lab, engine: str, image: ResolvedImage, words: list[str], parts: list[str]
) -> None:
    all_arrive(lab, engine, image, words, parts)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@seed(21)
@made_up(examples=20)
@STRINGS
def test_so_do_many_more(lab: Lab, engine: str, image: ResolvedImage, words: list[str], parts: list[str]) -> None:
    all_arrive(lab, engine, image, words, parts)


MODEL_NAME = "{{ 7 * 7 }} $(id) `id` %n \\ \"q\" 'a' <b>&; é 日"
ARGUMENT = "{{ 7 * 7 }} {% if x %} $(id) `id` $HOME %n %% \\ \\n \"q\" 'a'\n\ttwo; é"
PLACE = "/srv/ca che,\"{{ 7 * 7 }}\" $x 'y' %n \\ é"
SECRET = "{{ 7 * 7 }}\n$(id) \"q\" 'a' \\ %n"


@pytest.fixture(scope="module")
def deployed(lab: Lab) -> dict[str, str]:
    """The environment of a service deployed with all of that: as it was written."""
    plain = {f"V{number}": word for number, word in enumerate(NASTY) if "\r\n" not in word}
    in_file = {name: "lit:" + word.replace("${", "\\${") for name, word in plain.items()}
    lab.env["INJECTED"] = SECRET
    lab.ssh("mkdir -p /etc/sglang-ops && echo 'KEY={{ 7 * 7 }} $(id) %n' > /etc/sglang-ops/runtime.env", lab.hosts[0])
    hidden_in_file = {"A_TOKEN": "host:INJECTED", "B_TOKEN": SECRET, "KEY": "runtime:KEY"}
    path = written(
        "nasty", lab, served_model_name=MODEL_NAME, port=8100, extra_args=["--weight-version", ARGUMENT],
        env_vars=in_file | hidden_in_file | {"HF_HOME": PLACE},
    )  # fmt: skip
    result = lab.deploy(path, *QUICK, "--limit", lab.hosts[0], "--diff", "-v")
    assert result["ok"], json.dumps(result, indent=1)
    hidden = {"A_TOKEN": SECRET, "B_TOKEN": SECRET, "KEY": "{{ 7 * 7 }} $(id) %n"}
    return plain | hidden | {"HF_HOME": PLACE}


def written(service: str, lab: Lab, **changes: Any) -> Path:
    """A deployment file whose service is called so, whatever the model's name is."""
    path = lab.write(service, **changes)
    data = yaml.safe_load(path.read_text())
    data["deployment"]["name"] = service
    path.write_text(yaml.safe_dump(data))
    return path


def process(lab: Lab, what: str) -> list[str]:
    """Arguments ("cmdline") or environment of the server that was deployed so."""
    find = "for pid in $(pgrep -f '^python3 -m sglang.launch'); do grep -qs 8100 /proc/$pid/cmdline && break; done"
    return root(lab, "docker", f"{find}; cat /proc/$pid/{what}").encode("latin-1").decode().split("\0")[:-1]


def test_arguments_of_a_deployment_arrive_as_written(lab: Lab, deployed: dict[str, str]) -> None:
    argv = process(lab, "cmdline")
    assert argv[argv.index("--weight-version") + 1] == ARGUMENT
    assert argv[argv.index("--served-model-name") + 1] == MODEL_NAME
    (row,) = [item for item in lab.json("status")["services"] if item["name"] == "sglang-nasty"]
    with urllib.request.urlopen(f"{row['endpoint']}/v1/models", timeout=10) as response:
        assert json.load(response)["data"][0]["id"] == MODEL_NAME


def test_variables_of_a_deployment_arrive_as_written(lab: Lab, deployed: dict[str, str]) -> None:
    environment = dict(entry.split("=", 1) for entry in process(lab, "environ"))
    assert {name: environment.get(name) for name in deployed} == deployed
    (inspected,) = json.loads(root(lab, "docker", "docker inspect sglang-nasty").encode("latin-1"))
    assert (PLACE, PLACE) in [(mount["Source"], mount["Destination"]) for mount in inspected["Mounts"]]
    assert SECRET not in json.dumps(inspected)


def test_failure_is_told_in_the_words_of_the_file(lab: Lab, deployed: dict[str, str]) -> None:
    fault = {"SGLANG_SIMULATOR_FAULT": "wrong-model"}
    path = written("broken", lab, served_model_name=MODEL_NAME, port=8102, env_vars=fault)
    result = lab.deploy(path, *QUICK, "--limit", lab.hosts[0])
    assert result["exit_code"] == 4
    assert f"names another/model, not {MODEL_NAME}" in result["hosts"][0]["failure"]["cause"]
    assert lab.json("remove", "--service", "broken", "--yes")["ok"]


def test_such_a_deployment_is_like_any_other(lab: Lab, deployed: dict[str, str]) -> None:
    again = lab.deploy(lab.folder / "nasty.yaml", *QUICK, "--limit", lab.hosts[0])
    assert (again["ok"], again["hosts"][0]["changed"]) == (True, 0)
    assert lab.json("verify", "--service", "nasty", "--features", "json_schema")["ok"]
    assert lab.json("restart", "--service", "nasty")["ok"]
    assert lab.json("remove", "--service", "nasty", "--yes")["ok"]
    assert "sglang-nasty" not in lab.ssh("docker ps; ls /etc/systemd/system")


def test_checkpoint_in_a_place_with_an_odd_name(lab: Lab, deployed: dict[str, str]) -> None:
    place = shlex.quote(f"{PLACE}/model")
    hub = shlex.quote(f"{PLACE}/hub")
    root(lab, "docker", f"cp -rL {hub}/models--lab--tiny-llama/snapshots/* {place}")
    path = written("odd", lab, port=8101, hf_model_handle=None, checkpoint_path=f"{PLACE}/model")
    result = lab.deploy(path, *QUICK, "--limit", lab.hosts[0])
    assert result["ok"], json.dumps(result, indent=1)
