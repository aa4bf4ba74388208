"""Files between this machine and a host over Ansible's own connection, in pieces.

Whatever the inventory says of users, keys, jump hosts and sudo holds here too, and the host needs no more than
coreutils. A piece is written at its place in the file, so one that is sent twice does no harm, and what an interrupted
run has sent stays. Pieces are as long as about a second lasts: progress shows, and the round trips cost little.
"""

from __future__ import annotations

import base64
import json
import os
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sglang_ops.ansible_action import PROGRESS_VARIABLE, ProgressAction
from sglang_ops.bundle import Piece
from sglang_ops.errors import ExitCode, OpsError
from sglang_ops.saving import shown

SMALLEST, LARGEST = 256 * 1024, 32 * 1024 * 1024  # bytes of a piece
TEXT_PIECE = 4 * 1024 * 1024
PIPE_PIECE = 1024 * 1024
SUCCESS_BYTES = 128  # more than the line by which Ansible knows that sudo let it in
SHOWN_SECONDS = 0.5


class SendingError(OpsError):
    """The host did not take, or give, a piece of a file."""


class Pace:
    """How long the next piece should be: what went through in about a second."""

    def __init__(self) -> None:
        self.bytes = 4 * 1024 * 1024

    def note(self, count: int, seconds: float) -> None:
        wanted = int(count / max(seconds, 0.001))
        self.bytes = max(SMALLEST, min(LARGEST, wanted, self.bytes * 2))


class SendingAction(ProgressAction):
    """An action that sends files to its host between two executions of its module, or fetches some from it."""

    def deliver(
        self, module: str, asked: Mapping[str, Any], pieces: Mapping[str, Piece], variables: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Ask the module what to send, send it, and have the module take it.

        `pieces` has the files by the names that the module knows. Raises SendingError.
        """
        looked = dict(self._execute_module(module, module_args=dict(asked), task_vars=dict(variables)))
        if looked.get("failed") or looked.get("unreachable") or not looked.get("changed") or self._task.check_mode:
            return {key: value for key, value in looked.items() if key != "send"}
        step = module.removeprefix("sglang_")
        moved = self.send(str(variables["inventory_hostname"]), step, pieces, looked["send"])
        taken = self.execute_with_progress(module, {**asked, "arrived": True}, dict(variables))
        report = taken.get("sglang_ops", {})
        report["executions"] = 2
        for item in report.get("items", ()):
            if item["action"] != "there":  # files are shared: the first one is said to have moved them
                item["sent"], moved = moved, 0
        return taken

    def send(self, host: str, step: str, pieces: Mapping[str, Piece], wanted: Sequence[Mapping[str, Any]]) -> int:
        """Send the rest of each wanted file ({"name", "part", "offset", "size"}) and return the bytes that went.

        Raises SendingError; a connection that is lost raises what Ansible raises.
        """
        total = sum(item["size"] for item in wanted)
        done = sum(item["offset"] for item in wanted)
        note, sent, pace = self.noting(host, step), 0, Pace()
        for item in wanted:
            with pieces[item["name"]].open(item["offset"]) as stream:
                at = int(item["offset"])
                while at < item["size"]:
                    data = stream.read(min(pace.bytes, item["size"] - at))
                    if not data:
                        raise SendingError(f"{pieces[item['name']].path} became shorter while it was sent.")
                    started = time.monotonic()
                    self._put(str(item["part"]), at, data)
                    pace.note(len(data), time.monotonic() - started)
                    at, sent = at + len(data), sent + len(data)
                    note(shown(done + sent, total))
        return sent

    def _put(self, part: str, at: int, data: bytes) -> None:
        path = shlex.quote(part)
        begin = f"mkdir -p {shlex.quote(os.path.dirname(part))} && : > {path} && " if at == 0 else ""  # noqa: PTH120
        write = f"dd of={path} bs=1M seek={at} oflag=seek_bytes iflag=fullblock conv=notrunc status=none"
        done = self._low_level_execute_command(f"{begin}{write} && stat -c %s {path}", in_data=data)
        if done["rc"] != 0 or not str(done["stdout"]).strip().endswith(str(at + len(data))):
            told = " ".join(str(done["stderr"] or done["stdout"]).split()) or f"exit code {done['rc']}"
            raise SendingError(f"{part} cannot be written: {told}")

    def take(self, path: str, offset: int, size: int) -> Iterator[bytes]:
        """The bytes of a file of the host from `offset` on. Raises SendingError."""
        if self._connection.transport == "local":
            yield from Piece(Path(path), 0, size).pieces(offset)
        elif command := self._program(f"tail -c +{offset + 1} {shlex.quote(path)}"):
            yield from _output(command, path)
        else:
            yield from self._take_in_pieces(path, offset, size)

    def _program(self, command: str) -> list[str] | None:
        """SSH as Ansible would call it, for output that is too long to be kept; None where a password must be typed.

        Ansible keeps what a command says in memory, in a time that grows with the square of it.
        """
        connection = self._connection
        become = connection.become
        if connection.transport != "ssh" or connection.get_option("password"):
            return None
        if become and become.get_option("become_pass"):
            return None
        if become:
            command = become.build_become_command(command, connection._shell)  # noqa: SLF001 - as ActionBase does
        host = connection.get_option("host") or self._play_context.remote_addr
        program = connection._build_command(connection.get_option("ssh_executable"), "ssh", "-T", host, command)  # noqa: SLF001
        return [os.fsdecode(word) for word in program]

    def _take_in_pieces(self, path: str, offset: int, size: int) -> Iterator[bytes]:
        """The same over any connection, as text on the way."""
        at = offset
        while at < size:
            read = f"tail -c +{at + 1} {shlex.quote(path)} | head -c {TEXT_PIECE} | base64 -w 0"
            done = self._low_level_execute_command(read, in_data=b"\n")  # with input there is no terminal
            data = base64.b64decode(str(done["stdout"]).strip()) if done["rc"] == 0 else b""
            if not data:
                told = " ".join(str(done["stderr"]).split()) or "it became shorter"
                raise SendingError(f"{path} cannot be read: {told}")
            at += len(data)
            yield data

    def noting(self, host: str, step: str) -> Callable[[str], None]:
        """A function that shows how far the host is, where somebody looks."""
        last = 0.0

        def note(detail: str) -> None:
            nonlocal last
            file = os.environ.get(PROGRESS_VARIABLE)
            if file and time.monotonic() - last >= SHOWN_SECONDS:
                last = time.monotonic()
                line = json.dumps({"host": host, "step": step, "detail": detail})
                with Path(file).open("a", encoding="utf-8") as stream:
                    stream.write(f"{line}\n")

        return note

    def failed(self, error: OpsError) -> dict[str, Any]:
        """An error as Ansible and the command line understand it."""
        hint = {"exit_hint": int(error.exit_code)} if error.exit_code is ExitCode.REFUSED else {}
        message = f"{error.message} {error.fix or ''}".strip()
        return {"failed": True, "msg": message, "sglang_ops": {"kind": "bundle", "items": []}, **hint}


def _output(command: Sequence[str], path: str) -> Iterator[bytes]:
    """What the program prints, less what tells that sudo let it in. Raises SendingError."""
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        assert program.stdout  # noqa: S101 - both are pipes
        assert program.stderr  # noqa: S101
        try:
            first = program.stdout.readline(SUCCESS_BYTES)
            if not first.startswith(b"BECOME-SUCCESS-"):
                yield first
            while piece := program.stdout.read(PIPE_PIECE):
                yield piece
        except BaseException:  # nobody takes the rest
            program.terminate()
            raise
        told = program.stderr.read().decode(errors="replace").split()
    if program.returncode:
        raise SendingError(f"{path} cannot be read: {' '.join(told) or f'exit code {program.returncode}'}")
