"""What a person watches while a run lasts: a live table on a terminal, plain lines elsewhere, on stderr."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.live import Live
from rich.table import Table
from rich.text import Text

from sglang_ops.events import Event, HostState, RunState

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

TICK_SECONDS = 0.2
TAIL_LIMIT_BYTES = 1_000_000  # a log followed for days must not fill the disk
MARGIN_LINES = 4  # header, rule and cursor of the live table


class Tail:
    """New complete JSON lines of a file that others append to, opening it anew for each line."""

    def __init__(self, path: Path, limit: int = TAIL_LIMIT_BYTES) -> None:
        self._path = path
        self._old = path.with_suffix(".old")
        self._limit = limit
        self._offset = 0

    def read(self) -> Iterator[Mapping[str, Any]]:
        if self._old.exists():  # writers that had it open have had a tick to finish
            yield from self._lines(self._old)
            self._old.unlink()
            self._offset = 0
        yield from self._lines(self._path)
        if self._offset > self._limit:
            self._path.rename(self._old)

    def _lines(self, path: Path) -> Iterator[Mapping[str, Any]]:
        try:
            with path.open("rb") as file:
                file.seek(self._offset)
                text = file.read()
        except FileNotFoundError:
            return
        complete, newline, _ = text.rpartition(b"\n")
        self._offset += len(complete) + len(newline)
        for line in complete.splitlines():
            try:
                data = json.loads(line)
            except ValueError:
                continue
            if isinstance(data, dict):
                yield data


class Reporter:
    """Feeds a RunState from events and from the progress file, and shows it. Silent by itself.

    Events come from the main thread; a ticker reads the progress file between them. The ticker waits for the first
    event: by then Ansible runs, and forking it while a second thread holds a lock could block it for ever.
    """

    def __init__(
        self, state: RunState, progress: Path, *, on_line: Callable[[Mapping[str, Any]], None] | None = None
    ) -> None:
        self.state = state
        self._tail = Tail(progress)
        self._on_line = on_line
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._ticker = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._ticker.is_alive():
            self._ticker.join()
        self._read_progress()

    def apply(self, event: Event) -> None:
        if not self._ticker.is_alive():
            self._ticker.start()
        with self._lock:
            self.state.apply(event)
            self.show()

    def show(self) -> None:
        """Bring the display up to date. Called with the lock held."""

    def _tick(self) -> None:
        while not self._over.wait(TICK_SECONDS):
            self._read_progress()

    def _read_progress(self) -> None:
        with self._lock:
            for line in self._tail.read():
                if "text" in line and self._on_line:
                    self._on_line(line)
                elif "host" in line:
                    self.state.note(line, time.time())
            self.show()


class PlainReporter(Reporter):
    """`HH:MM:SS host step detail`, once per step of a host: for logs of build servers."""

    def __init__(self, console: Console, state: RunState, progress: Path) -> None:
        super().__init__(state, progress)
        self._console = console
        self._shown: dict[str, str] = {}

    def show(self) -> None:
        for host in self.state.hosts.values():
            step = "failed" if host.failure else host.step
            if step and self._shown.get(host.name) != step:
                self._shown[host.name] = step
                detail = host.failure.cause.splitlines()[0] if host.failure else host.detail
                line = f"{datetime.now().astimezone():%H:%M:%S} {host.name} {step} {detail}".rstrip()
                self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class EchoReporter(Reporter):
    """Ansible's own output as it comes, for `-v`."""

    def __init__(self, console: Console, state: RunState, progress: Path) -> None:
        super().__init__(state, progress)
        self._console = console

    def apply(self, event: Event) -> None:
        text = str(event.get("stdout") or "")
        if text:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)
        super().apply(event)


class LiveReporter(Reporter):
    """One row per host: how far it is, for how long it has been in this step, and what the step says."""

    def __init__(self, console: Console, state: RunState, progress: Path, steps: Sequence[str]) -> None:
        super().__init__(state, progress)
        self._console = console
        self._steps = steps
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> LiveReporter:
        self._live.start()
        self.show()
        return self

    def __exit__(self, *unused: object) -> None:
        super().__exit__(*unused)
        self._live.stop()

    def show(self) -> None:
        self._live.update(host_table(self.state, self._steps, time.time(), self._console), refresh=True)


def host_table(state: RunState, steps: Sequence[str], now: float, console: Console) -> Table:
    """The live table. Hosts that are done give way when there are more hosts than lines."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), expand=False)
    table.add_column("host", no_wrap=True)
    table.add_column("step", no_wrap=True, min_width=len(steps) + 8)
    table.add_column("elapsed", justify="right", no_wrap=True)
    table.add_column("", overflow="ellipsis", no_wrap=True, style="dim")
    room = max(1, console.height - MARGIN_LINES)
    ascii_only = not console.encoding.lower().startswith("utf")
    by_interest = sorted(state.hosts.values(), key=lambda host: (host.failure is None, -host.step_started))
    shown = {host.name for host in by_interest[:room]}
    for host in state.hosts.values():
        if host.name in shown:
            detail = host.failure.cause.splitlines()[0] if host.failure else host.detail
            elapsed = clock((host.updated if host.failure else now) - host.started)
            table.add_row(host.name, _dots(host, steps, ascii_only=ascii_only), elapsed, Text(detail))
    if len(by_interest) > room:
        table.caption = f"… and {len(by_interest) - room} more hosts"
    if not state.hosts:
        table.add_row("", Text("connecting", style="dim"), "", "")
    return table


def clock(seconds: float) -> str:
    minutes, rest = divmod(max(0, int(seconds)), 60)
    return f"{minutes}:{rest:02d}"


def _dots(host: HostState, steps: Sequence[str], *, ascii_only: bool) -> Text:
    done, current, ahead = "#>." if ascii_only else "●◐○"
    known = [*steps, *(step for step in host.steps if step not in steps)]
    text = Text()
    position = known.index(host.step) if host.step in known else -1
    for index, step in enumerate(known):
        if host.failure and index == position:
            text.append("x" if ascii_only else "✗", style="bold red")
        elif index == position:
            text.append(current, style="bold yellow")
        elif index < position:
            text.append(done if step in host.steps else ahead, style="green" if step in host.steps else "dim")
        else:
            text.append(ahead, style="dim")
    return text.append(f" {host.step}", style="red" if host.failure else "")


def reporter(console: Console, state: RunState, progress: Path, steps: Sequence[str], *, quiet: bool) -> Reporter:
    """Live on a terminal, plain lines elsewhere, nothing for programs (`quiet`) without a terminal."""
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveReporter(console, state, progress, steps)
    return Reporter(state, progress) if quiet else PlainReporter(console, state, progress)
