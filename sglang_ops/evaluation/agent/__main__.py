"""One life of a run: proxy here, harness in a process of its own, and a file that says how far it is.

Exit codes: 0 done, 7 refused (checked.json says why) where somebody waits to hear of it, 3 the server is gone for
longer than the run is patient, or is another one, 143 stopped; anything else is tried again by systemd. A life that
follows goes on where this one ends.

A run of several images has one container after the other: each is told what it does (`check` its tasks, `run` them)
and which stage of the run it is. A run of one image does both at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

from .identity import Identity, Replaced
from .proxy import Proxy, Route
from .store import Store
from .task import read, write
from .upstream import Server, Stalled, Upstream, measure
from .work import AGAIN, BOTH, CHECK, RUN

_EVERY_SECONDS = 1.0
_RATE_SECONDS = 60.0
PROMPTS: dict[str, dict[str, Any]] = {
    "chat": {"messages": [{"role": "user", "content": "Count from one to ten."}]},
    "completions": {"prompt": "Count from one to ten."},
}


class Life:
    """The run from the start of this process to its end."""

    def __init__(self, directory: Path, what: str = BOTH, stage: int = 0, *, awaited: bool = False) -> None:
        self.directory, self.what, self.stage, self.awaited = directory, what, stage, awaited
        self.job: dict[str, Any] = json.loads((directory / "job.json").read_text())
        secrets = json.loads((directory / "secrets.json").read_text())
        self.harness_environment: dict[str, str] = secrets["environment"]
        self.task_environments: dict[str, dict[str, str]] = secrets.get("tasks", {})
        self.over = threading.Event()
        self.ended_because = ""
        self.store = Store(directory / "answers.sqlite")
        self.identity = Identity(directory)
        self.upstream = Upstream(
            [Server(one["address"], one["port"], one.get("host", "")) for one in self.job["upstreams"]],
            capacity=self.job["concurrency"],
            patience=self.job["patience"],
            api_key=secrets.get("api_key"),
            ended=self.over.wait,
            check=self.identity.check,
        )
        endpoints = self.job["endpoints"]
        routes = {
            task["name"]: Route(endpoints[task["endpoint_type"]], task["request_timeout"], task["max_retries"])
            for task in self.job["tasks"]
        }
        self.proxy = Proxy(self.store, self.upstream, routes, self._stall)
        self.rates: deque[tuple[float, int]] = deque()

    def live(self) -> int:
        signal.signal(signal.SIGTERM, lambda *_: self._end("stopped"))
        self._tell("running" if self.what == RUN else "checking")
        if self.what != CHECK:
            self._measure()
        self.proxy.start()
        code = self._harness()
        self.proxy.stop()
        if code == 7:
            return self._refused()
        if code == 0:
            last = self.stage == max(task.get("stage", 0) for task in self.job["tasks"])
            if last and self.what != CHECK:
                self._tell("done")
                (self.directory / "finished").touch()
            return 0
        if self.ended_because == "stopped":
            self._tell("stopped")
            return 143
        self._tell("replaced" if self.identity.changed else "stalled" if self.ended_because else "failed")
        return 3 if self.ended_because else 1

    def _refused(self) -> int:
        """What could be read once may be out of reach for a while only: a life after a reboot is tried again, unless
        somebody waits to hear of it. So is none that has not asked anything yet."""
        if self.awaited or not any(self.store.count(task["name"])["done"] for task in self.job["tasks"]):
            self._tell("refused")
            return 7
        self.ended_because = " ".join(read(self.directory / "checked.json").get("problems", []))
        self._tell("failed")
        return 1

    def _measure(self) -> None:
        kind = self.job["tasks"][0]["endpoint_type"]
        try:
            self._look()
            measure(self.upstream, self.job["endpoints"][kind], self.job["model"], PROMPTS[kind])
        except Stalled as error:
            self._end(str(error))

    def _harness(self) -> int:
        environment = {**os.environ, **self.harness_environment, "OPENAI_API_KEY": "the-proxy-has-it"}
        package = str(__package__)
        root = Path(__file__).resolve().parents[package.count(".") + 1]  # of this package; on hosts a zip file
        with subprocess.Popen(
            [
                *(sys.executable, "-m", f"{package}.work"),
                *(str(self.directory), self.proxy.url, self.what, str(self.stage)),
            ],
            env={**environment, "PYTHONPATH": str(root)},
            start_new_session=True,
            stdin=subprocess.PIPE,
            text=True,
        ) as child:
            assert child.stdin  # noqa: S101 - it is a pipe
            child.stdin.write(json.dumps(self.task_environments))  # not by file or argument: there may be tokens in it
            child.stdin.close()
            while not self.over.is_set():
                try:
                    return child.wait(_EVERY_SECONDS)
                except subprocess.TimeoutExpired:
                    with contextlib.suppress(Replaced):
                        self._look()
                    checked = read(self.directory / "checked.json")
                    at_work = self.what == RUN or (self.what == BOTH and checked and not checked["problems"])
                    self._tell("running" if at_work else "checking")
            os.killpg(child.pid, signal.SIGKILL)
            return child.wait()

    def _look(self) -> None:
        """End where something else has been deployed. Raises Replaced."""
        if self.identity.marked():
            self._end(self.identity.changed)
            raise Replaced(self.identity.changed)

    def _stall(self, why: str) -> None:
        self._end(why)

    def _end(self, why: str) -> None:
        self.ended_because = self.ended_because or why
        self.over.set()

    def _tell(self, state: str) -> None:
        """Write how far the run is: counts, answers per second over the last minute, seconds left."""
        checked = read(self.directory / "checked.json")
        tasks = {task["name"]: self._count(task["name"], checked) for task in self.job["tasks"]}
        done = sum(task["done"] for task in tasks.values())
        total = sum(task["total"] for task in tasks.values())
        now = time.monotonic()
        self.rates.append((now, done))
        while self.rates[0][0] < now - _RATE_SECONDS:
            self.rates.popleft()
        (since, before), seconds = self.rates[0], now - self.rates[0][0]
        rate = (done - before) / seconds if seconds >= _EVERY_SECONDS and now > since else 0.0
        status = {
            "state": state,
            "why": self.ended_because,
            "problems": checked.get("problems", []),
            "tasks": tasks,
            "done": done,
            "total": total,
            "rate": round(rate, 3),
            "seconds_left": round((total - done) / rate) if rate else None,
            "requests": self.upstream.requests,
            "concurrency": self.job["concurrency"],
            "updated": time.time(),
        }
        write(self.directory / "status.json", json.dumps(status))

    def _count(self, name: str, checked: dict[str, Any]) -> dict[str, Any]:
        known, counts = checked.get("tasks", {}).get(name, {}), self.store.count(name)
        return {
            "total": max(known.get("here", 0) * known.get("repeats", 1), counts["done"]),
            **counts,
            "scored": (self.directory / "results" / name / "samples.jsonl").exists(),
        }


def main() -> int:
    directory = Path(sys.argv[1])
    what, stage = (sys.argv[2], int(sys.argv[3])) if len(sys.argv) > 2 else (BOTH, 0)
    begins = stage == 0 and what != RUN
    if begins:
        (directory / "checked.json").unlink(missing_ok=True)
    return Life(directory, what, stage, awaited=(directory / AGAIN).exists()).live()


if __name__ == "__main__":
    sys.exit(main())
