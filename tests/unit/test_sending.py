"""Files sent to a host and fetched from one, over connections that are not SSH, are, or break."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sglang_ops import sending
from sglang_ops.ansible_action import PROGRESS_VARIABLE
from sglang_ops.bundle import Piece
from sglang_ops.errors import OpsError, UsageError
from sglang_ops.sending import SendingAction, SendingError

CONTENT = bytes(range(256)) * 40_000  # 10 MB


def shell(command: str, in_data: bytes) -> dict[str, Any]:
    """What a host does with a command."""
    done = subprocess.run(["sh", "-c", command], input=in_data, capture_output=True, check=False)
    return {"rc": done.returncode, "stdout": done.stdout.decode(), "stderr": done.stderr.decode()}


def action(run: Callable[..., dict[str, Any]] = shell, **connection: Any) -> SendingAction:
    plugin = SendingAction.__new__(SendingAction)
    plugin._low_level_execute_command = run
    plugin._connection = SimpleNamespace(**{"transport": "paramiko", "become": None} | connection)
    plugin._play_context = SimpleNamespace(remote_addr="gpu-1")
    plugin._task = SimpleNamespace(check_mode=False)
    return plugin


def wanted(tmp_path: Path, offset: int = 0) -> list[dict[str, Any]]:
    return [{"name": "blob", "part": str(tmp_path / "a dir" / "blob.part"), "offset": offset, "size": len(CONTENT)}]


@pytest.fixture
def pieces(tmp_path: Path) -> dict[str, Piece]:
    """A file in the middle of another, as in a tar."""
    (tmp_path / "bundle.tar").write_bytes(b"head" + CONTENT + b"tail")
    return {"blob": Piece(tmp_path / "bundle.tar", 4, len(CONTENT))}


class TestSend:
    """To a host."""

    def test_whole_and_in_pieces(self, tmp_path: Path, pieces: dict[str, Piece]) -> None:
        assert action().send("gpu-1", "image_load", pieces, wanted(tmp_path)) == len(CONTENT)
        assert (tmp_path / "a dir" / "blob.part").read_bytes() == CONTENT

    def test_the_rest_only(self, tmp_path: Path, pieces: dict[str, Piece]) -> None:
        (tmp_path / "a dir").mkdir()
        (tmp_path / "a dir" / "blob.part").write_bytes(CONTENT[:6_000_000])
        assert action().send("gpu-1", "image_load", pieces, wanted(tmp_path, 6_000_000)) == len(CONTENT) - 6_000_000
        assert (tmp_path / "a dir" / "blob.part").read_bytes() == CONTENT

    def test_a_piece_that_goes_twice_does_no_harm(self, tmp_path: Path, pieces: dict[str, Piece]) -> None:
        def twice(command: str, in_data: bytes) -> dict[str, Any]:
            shell(command, in_data)
            return shell(command, in_data)

        action(twice).send("gpu-1", "image_load", pieces, wanted(tmp_path))
        assert (tmp_path / "a dir" / "blob.part").read_bytes() == CONTENT

    def test_progress_in_bytes(self, tmp_path: Path, pieces: dict[str, Piece], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(PROGRESS_VARIABLE, str(tmp_path / "progress"))
        monkeypatch.setattr(sending, "SHOWN_SECONDS", 0)
        action().send("gpu-1", "image_load", pieces, wanted(tmp_path))
        lines = [json.loads(line) for line in (tmp_path / "progress").read_text().splitlines()]
        assert lines[-1] == {"host": "gpu-1", "step": "image_load", "detail": "10 / 10 MB"}
        assert len(lines) > 1

    def test_a_host_that_does_not_take_it(self, tmp_path: Path, pieces: dict[str, Piece]) -> None:
        (tmp_path / "a dir").write_text("in the way")
        with pytest.raises(SendingError, match=r"cannot be written: mkdir: .*File exists"):
            action().send("gpu-1", "image_load", pieces, wanted(tmp_path))

    def test_a_bundle_that_became_shorter(self, tmp_path: Path, pieces: dict[str, Piece]) -> None:
        (tmp_path / "bundle.tar").write_bytes(b"head")
        with pytest.raises(SendingError, match="became shorter"):
            action().send("gpu-1", "image_load", pieces, wanted(tmp_path))


class TestTake:
    """From a host."""

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        file = tmp_path / "it's here"
        file.write_bytes(CONTENT)
        return file

    @pytest.mark.parametrize("offset", [0, 7_654_321])
    def test_as_text_over_any_connection(self, path: Path, offset: int) -> None:
        assert b"".join(action().take(str(path), offset, len(CONTENT))) == CONTENT[offset:]

    def test_here(self, path: Path) -> None:
        assert b"".join(action(transport="local").take(str(path), 5, len(CONTENT))) == CONTENT[5:]

    def test_a_file_that_is_gone(self, tmp_path: Path) -> None:
        with pytest.raises(SendingError, match="cannot be read"):
            list(action().take(str(tmp_path / "gone"), 0, 10))

    @pytest.mark.parametrize("greeting", ["", "BECOME-SUCCESS-abcdef"])
    def test_over_ssh_in_one_stream(self, path: Path, greeting: str) -> None:
        become = SimpleNamespace(
            get_option=lambda _: None, build_become_command=lambda command, _: f"echo {greeting}; {command}"
        )
        plugin = action(
            transport="ssh",
            become=become if greeting else None,
            get_option={"password": None, "host": "gpu-1", "ssh_executable": "ssh"}.get,
            _build_command=lambda *words: [b"sh", b"-c", words[-1].encode()],
            _shell=None,
        )
        assert b"".join(plugin.take(str(path), 1000, len(CONTENT))) == CONTENT[1000:]
        with pytest.raises(SendingError, match="gone"):
            list(plugin.take(f"{path.parent}/gone", 0, 10))

    @pytest.mark.parametrize(("password", "become_pass"), [("secret", None), (None, "secret")])
    def test_where_a_password_is_typed_ansible_types_it(
        self, path: Path, password: str | None, become_pass: str | None
    ) -> None:
        become = SimpleNamespace(get_option={"become_pass": become_pass}.get)
        plugin = action(transport="ssh", become=become, get_option={"password": password}.get)
        assert b"".join(plugin.take(str(path), 0, len(CONTENT))) == CONTENT

    def test_who_stops_listening_ends_the_program(self) -> None:
        endless = sending._output([sys.executable, "-c", "while True: print('x' * 1000)"], "/dev/zero")
        assert next(endless)
        endless.close()


class TestDeliver:
    """Asked, sent, taken."""

    def plugin(self, *answers: dict[str, Any]) -> Any:
        plugin = action()
        left = list(answers)
        self.calls: list[dict[str, Any]] = []

        def execute(name: str, module_args: dict[str, Any], task_vars: Any) -> dict[str, Any]:
            self.calls.append(module_args)
            return left.pop(0)

        plugin._execute_module = execute
        plugin.execute_with_progress = execute
        return plugin

    def test_both_halves(self, tmp_path: Path, pieces: dict[str, Piece]) -> None:
        items = [{"name": "a", "action": "there"}, {"name": "b", "action": "load"}]
        looked = {"changed": True, "send": wanted(tmp_path)}
        plugin = self.plugin(looked, {"changed": True, "sglang_ops": {"kind": "bundle", "items": items}})
        told = plugin.deliver("sglang_image_load", {"engine": "docker"}, pieces, {"inventory_hostname": "gpu-1"})
        assert [call.get("arrived") for call in self.calls] == [None, True]
        assert told["sglang_ops"]["executions"] == 2
        assert [item.get("sent") for item in told["sglang_ops"]["items"]] == [None, len(CONTENT)]

    @pytest.mark.parametrize("looked", [{"changed": False}, {"failed": True, "msg": "no room"}, {"unreachable": True}])
    def test_where_there_is_nothing_to_send(self, pieces: dict[str, Piece], looked: dict[str, Any]) -> None:
        plugin = self.plugin({**looked, "send": []})
        assert plugin.deliver("sglang_image_load", {}, pieces, {"inventory_hostname": "gpu-1"}) == looked
        assert len(self.calls) == 1

    @pytest.mark.parametrize(("error", "hint"), [(UsageError("no"), 7), (OpsError("no"), None)])
    def test_errors(self, error: OpsError, hint: int | None) -> None:
        assert action().failed(error).get("exit_hint") == hint
