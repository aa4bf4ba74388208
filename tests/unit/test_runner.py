"""The traps of ansible-runner, one test each, against real playbooks on local connections."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from waiting import at_most

from sglang_ops import content, processes, runner
from sglang_ops.errors import OpsError

ROOT = Path(__file__).resolve().parents[2]
LOCAL = "all: {vars: {ansible_connection: local}, hosts: {one: {}}}\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory with an inventory `hosts`, and a place of its own for private directories."""
    (tmp_path / "private").mkdir()
    (tmp_path / "hosts").write_text(LOCAL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "private"))
    monkeypatch.setenv("ANSIBLE_PYTHON_INTERPRETER", sys.executable)
    yield tmp_path
    assert list((tmp_path / "private").glob("sglang-ops-*")) == [], "the private directory outlived the run"


def playbook(here: Path, *tasks: dict[str, Any], hosts: str = "all") -> Path:
    path = here / "play.yml"
    path.write_text(json.dumps([{"hosts": hosts, "gather_facts": False, "tasks": list(tasks)}]))
    return path


def messages(here: Path, message: str, **arguments: Any) -> list[Any]:
    """What `debug` says for a template, host by host."""
    events: list[runner.Event] = []
    path = playbook(here, {"ansible.builtin.debug": {"msg": message}})
    runner.run(path, arguments.pop("inventory", ["hosts"]), on_event=events.append, **arguments)
    return [item["event_data"]["res"]["msg"] for item in events if item["event"] == "runner_on_ok"]


def leaders(here: Path, events: list[runner.Event]) -> str:
    """The command line of ansible-playbook, as `ps` shows it to everybody."""
    pid = next(item["pid"] for item in events if item["event"] == "playbook_on_start")
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


def test_a_relative_inventory_is_the_file_and_not_a_host_of_that_name(here: Path) -> None:
    assert messages(here, "{{ inventory_hostname }}") == ["one"]


def test_a_list_of_hosts_is_an_inventory_too(here: Path) -> None:
    found = messages(here, "{{ inventory_hostname }}", inventory=["a,b"], extravars={"ansible_connection": "local"})
    assert sorted(found) == ["a", "b"]


def test_the_environment_of_an_earlier_run_is_not_reused(here: Path) -> None:
    template = "{{ lookup('env', 'FOO') }}"
    assert messages(here, template, env={"FOO": "one"}) == ["one"]
    assert messages(here, template, env={"FOO": "two"}) == ["two"]


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, int, int, str]]:
    """The secret files of the run: path, mode, mode of the directory, content."""
    seen: list[tuple[Path, int, int, str]] = []
    write = runner._write_secret

    def spy(path: Path, text: str) -> Path:
        write(path, text)
        modes = [stat.S_IMODE(item.stat().st_mode) for item in (path, path.parent)]
        seen.append((path, modes[0], modes[1], path.read_text()))
        return path

    monkeypatch.setattr(runner, "_write_secret", spy)
    return seen


def test_extra_variables_keep_their_types_and_stay_out_of_ps(here: Path, written: list[Any]) -> None:
    events: list[runner.Event] = []
    seen: list[str] = []

    def on_event(item: runner.Event) -> None:
        events.append(item)
        if item["event"] == "playbook_on_start":
            seen.append(leaders(here, events))
            assert not written[0][0].exists()

    path = playbook(here, {"ansible.builtin.debug": {"msg": "{{ flag | type_debug }} {{ token }}"}})
    runner.run(path, ["hosts"], on_event=on_event, extravars={"flag": True, "token": "canary-4711"})
    said = [item["event_data"]["res"]["msg"] for item in events if item["event"] == "runner_on_ok"]
    assert said == ["bool canary-4711"]
    assert "canary-4711" not in seen[0]
    assert [row[1:3] for row in written] == [(0o600, 0o700)]


def test_files_of_extra_variables_are_given_to_ansible(here: Path) -> None:
    (here / "vars.yml").write_text("greeting: hello\n")
    assert messages(here, "{{ greeting }}", extravars_files=[Path("vars.yml")]) == ["hello"]


def test_the_environment_is_nowhere_on_disk_while_the_run_lasts(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "canary-4712")
    leaks: list[Path] = []

    def on_event(item: runner.Event) -> None:
        if item["event"] == "runner_on_ok":
            files = [path for path in here.glob("private/**/*") if path.is_file()]
            leaks.extend(path for path in files if b"canary-4712" in path.read_bytes())
            assert files, "nothing was looked at"

    path = playbook(here, {"ansible.builtin.ping": {}})
    assert runner.run(path, ["hosts"], on_event=on_event).rc == 0
    assert leaks == []


def test_host_keys_are_checked_unless_the_user_says_otherwise(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    template = "{{ lookup('config', 'HOST_KEY_CHECKING') }}"
    assert messages(here, template) == [True]
    monkeypatch.setenv("ANSIBLE_HOST_KEY_CHECKING", "False")
    assert messages(here, template) == [False]


def test_a_user_s_missing_callback_does_not_end_the_run(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANSIBLE_STDOUT_CALLBACK", "no.such.callback")
    assert messages(here, "fine") == ["fine"]


def test_a_locale_that_is_not_installed_does_not_matter(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "xx_YY.UTF-8")
    assert messages(here, "fine") == ["fine"]


@pytest.mark.parametrize(("given", "user", "used"), [(None, None, 25), (None, "7", 7), (3, "7", 3)])
def test_forks_are_ours_unless_the_user_says_otherwise(
    given: int | None, user: str | None, used: int, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if user:
        monkeypatch.setenv("ANSIBLE_FORKS", user)
    assert messages(here, "{{ ansible_forks }}", forks=given) == [used]


def test_the_working_directory_stays(here: Path) -> None:
    assert messages(here, "{{ lookup('pipe', 'pwd') }}") == [str(here)]


def test_our_plugins_are_found_beside_the_user_s(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANSIBLE_LIBRARY", "/srv/modules")
    paths = runner.environment()["ANSIBLE_LIBRARY"].split(os.pathsep)
    assert paths == [str(content.root() / "plugins" / "modules"), "/srv/modules"]


def test_ansible_is_found_without_path(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert messages(here, "fine") == ["fine"]


def test_large_results_arrive_whole(here: Path) -> None:
    events: list[runner.Event] = []
    program = "import sys; sys.stdout.write('x' * 1000000)"
    path = playbook(here, {"ansible.builtin.command": {"argv": [sys.executable, "-c", program]}})
    runner.run(path, ["hosts"], on_event=events.append)
    result = next(item["event_data"]["res"] for item in events if item["event"] == "runner_on_ok")
    assert len(result["stdout"]) == 1_000_000


def test_check_mode_and_diff_reach_ansible(here: Path) -> None:
    path = here / "new"
    events: list[runner.Event] = []
    play = playbook(here, {"ansible.builtin.copy": {"dest": str(path), "content": "text\n", "mode": "0600"}})
    runner.run(play, ["hosts"], on_event=events.append, check=True, diff=True)
    assert not path.exists()
    assert any("+text" in item.get("stdout", "") for item in events if item["event"] == "runner_on_file_diff")


def test_no_interpreter_is_looked_for(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANSIBLE_PYTHON_INTERPRETER")
    events: list[runner.Event] = []
    runner.run(playbook(here, {"ansible.builtin.ping": {}}), ["hosts"], on_event=events.append, verbosity=3)
    log = "\n".join(str(item.get("stdout", "")) for item in events)
    assert "EXEC" in log
    assert "PLATFORM" not in log  # the first line of the discovery's shell script
    results = [item["event_data"]["res"] for item in events if item["event"] == "runner_on_ok"]
    assert results
    assert "discovered_interpreter_python" not in results[0].get("ansible_facts", {})


def test_an_inventory_names_its_own_interpreter(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANSIBLE_PYTHON_INTERPRETER")
    mine = {"all": {"hosts": {"one": {"ansible_connection": "local", "ansible_python_interpreter": "/no/python3"}}}}
    (here / "hosts").write_text(json.dumps(mine))
    events: list[runner.Event] = []
    runner.run(playbook(here, {"ansible.builtin.ping": {}}), ["hosts"], on_event=events.append)
    assert any("/no/python3" in str(item.get("event_data", {}).get("res")) for item in events)


def test_the_sudo_password_travels_in_a_private_file(here: Path, written: list[Any]) -> None:
    events: list[runner.Event] = []
    seen: list[str] = []

    def on_event(item: runner.Event) -> None:
        events.append(item)
        if item["event"] == "playbook_on_start":
            seen.append(leaders(here, events))

    path = playbook(here, {"ansible.builtin.ping": {}})
    assert runner.run(path, ["hosts"], on_event=on_event, become_password="canary-4713").rc == 0
    assert [row[1:] for row in written] == [(0o600, 0o700, "canary-4713")]
    assert f"--become-password-file {written[0][0]}" in seen[0]
    assert "canary-4713" not in seen[0]


def test_an_error_in_the_handler_ends_ansible_and_comes_back(here: Path) -> None:
    def on_event(item: runner.Event) -> None:
        if item["event"] == "runner_on_start":
            raise OpsError("stop here")

    began = time.monotonic()
    path = playbook(here, {"ansible.builtin.command": "sleep 4714"})
    with pytest.raises(OpsError, match="stop here"):
        runner.run(path, ["hosts"], on_event=on_event)
    assert time.monotonic() - began < at_most(10)
    assert running("sleep 4714") == []


def test_signal_handlers_are_put_back(here: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    messages(here, "fine")
    assert signal.getsignal(signal.SIGINT) is before


def test_a_long_home_gets_a_short_control_path(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/" + "long" * 20)
    path = Path(runner.environment()["ANSIBLE_SSH_CONTROL_PATH_DIR"])
    assert len(str(path)) <= runner.CONTROL_PATH_LIMIT
    assert stat.S_IMODE(path.stat().st_mode) == 0o700


PROGRAM = """
import sys
from pathlib import Path
from sglang_ops import runner

def on_event(item):
    print(item["event"], flush=True)

done = runner.run(Path("play.yml"), ["hosts"], on_event=on_event)
print("ended", done.interrupted, flush=True)
"""


def running(words: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_text().replace("\0", " ").strip()
        except OSError:
            continue
        if line == words:
            found.append(path.parent.name)
    return found


@pytest.mark.parametrize("until", ["runner_on_start", None], ids=["in a task", "before Ansible is up"])
def test_ctrl_c_ends_within_a_second_and_leaves_nothing(here: Path, until: str | None) -> None:
    playbook(here, {"ansible.builtin.command": "sleep 4715"})
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(here / "private")}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        if until:
            while process.stdout.readline().strip() != until:
                pass
            wait_for(lambda: running("sleep 4715"))
        else:
            wait_for(lambda: processes.children(process.pid))
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
        took = time.monotonic() - began
    assert rest.splitlines()[-1] == "ended True"
    assert took < at_most(2.0)
    assert running("sleep 4715") == []


def test_a_second_ctrl_c_kills(here: Path) -> None:
    with (
        runner._Interrupt() as interrupt,
        subprocess.Popen(["sh", "-c", "trap '' INT; sleep 4716 & wait"], start_new_session=True) as process,
    ):
        wait_for(lambda: running("sleep 4716"))
        interrupt.GRACE_SECONDS = 60
        interrupt.attach(process.pid)
        interrupt.request()
        time.sleep(0.3)
        assert process.poll() is None
        interrupt.request()
        assert process.wait(5) == -signal.SIGKILL
    assert running("sleep 4716") == []


def wait_for(condition: Any) -> None:
    for _ in range(200):
        if condition():
            return
        time.sleep(0.05)
    pytest.fail("waited ten seconds in vain")
