"""What `images save|load` and `models export|import` have in common."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from sglang_ops.commands import _common, _deployment, _views
from sglang_ops.errors import ExitCode

To = Annotated[
    Path,
    typer.Option("--to", metavar="DIR|FILE.tar", help="Where to write: a directory, or one file.", show_default=False),
]
From = Annotated[
    Path, typer.Option("--from", metavar="DIR|FILE.tar", help="What was written on the other side.", show_default=False)
]
_PLAIN_SECONDS = 10  # between two lines of progress where there is no terminal


@contextmanager
def progress(*, quiet: bool) -> Iterator[Callable[[str], None]]:
    """A function that shows, on stderr, how far work on this machine is."""
    console = _common.stderr()
    if console.is_terminal:
        with console.status("") as status:
            yield status.update
        return
    last = 0.0

    def report(text: str) -> None:
        nonlocal last
        if not quiet and time.monotonic() - last >= _PLAIN_SECONDS:
            last = time.monotonic()
            console.print(f"{datetime.now().astimezone():%H:%M:%S} {text}", markup=False, soft_wrap=True)

    yield report


def tell(
    data: Mapping[str, Any], rows: Sequence[Sequence[str]], headers: Sequence[str], started: float, *, json: bool
) -> None:
    """The result of work on this machine."""
    seconds = round(time.monotonic() - started, 2)
    if json:
        _common.print_json({"ok": True, "exit_code": int(ExitCode.DONE), **data, "seconds": seconds})
        return
    table = _views.grid(*headers)
    for row in rows:
        table.add_row(*row)
    _common.stdout().print(table)
    _common.stderr().print(f"Finished in {seconds:.1f} s.")


def following(command: str) -> None:
    _views.following([command], _common.stderr())


@dataclass(frozen=True)
class Item:
    """One image or model on one host. `action` is what was done (in check mode: would be), "there" for nothing."""

    host: str
    name: str
    digest: str
    action: str
    bytes: int
    sent: int


@dataclass(frozen=True)
class Work:
    """A play that carries files to or from hosts, and what is said about it."""

    verb: str
    target: _common.Target
    json: bool
    check: bool = False
    diff: bool = False

    def play(
        self,
        variables: Mapping[str, Any],
        context: typer.Context,
        headers: Sequence[str],
        judge: Callable[[Sequence[Item]], None] = lambda _: None,
        source: _deployment.Source | None = None,
    ) -> int:
        """Run it. `judge` may raise where every host did its part and yet something is missing; `source` says where
        deployments have their caches."""
        with _common.run_folder(self.verb, self.target) as folder:
            played = _common.play(
                self.verb,
                self.target,
                folder,
                {"sglang_ops_bundle": dict(variables), **(source.variables if source else {})},
                quiet=self.json,
                check=self.check,
                diff=self.diff,
            )
            state = played.state
            items = [
                Item(host.name, item["name"], item["digest"], item["action"], item["bytes"], item.get("sent", 0))
                for host in state.hosts.values()
                if not host.failure
                for item in host.result("bundle").get("items") or ()
            ]
            if not (state.failures or played.interrupted):
                judge(items)
            data = {
                "ok": played.exit_code is ExitCode.DONE,
                "exit_code": int(played.exit_code),
                "check": self.check,
                "items": [asdict(item) for item in items],
                "hosts": [
                    {"host": host.name, "changed": host.changed, "module_executions": host.executions}
                    | ({"failure": asdict(host.failure)} if host.failure else {})
                    for host in state.hosts.values()
                ],
                "seconds": round(played.seconds, 2),
            }
            _common.keep(folder, data, hosts=len(state.hosts), seconds=played.seconds)
            if self.json:
                _common.print_json(data)
            elif items:
                _common.stdout().print(table(items, headers, check=self.check))
            err, again = _common.stderr(), _common.again(context)
            if played.interrupted:
                _views.interrupted(err, state, again)
                return played.exit_code
            _views.failures(err, state.failures, folder, self.target, again)
            if not self.json:
                err.print(f"Finished in {played.seconds:.1f} s.")
            return played.exit_code


def table(items: Sequence[Item], headers: Sequence[str], *, check: bool) -> Any:
    """One line per image or model of a host."""
    made = _views.grid(*headers)
    words = {"load": "loaded", "import": "imported", "export": "exported", "there": "unchanged"}
    for item in items:
        result = f"would {item.action}" if check and item.action != "there" else words.get(item.action, item.action)
        moved = size(item.bytes if check and item.action != "there" else item.sent)
        made.add_row(item.host, item.name, item.digest[:19], result, moved)
    return made


def size(count: float) -> str:
    """Bytes in decimal units."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count:.0f} bytes" if count else "-"
