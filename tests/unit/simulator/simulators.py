"""A simulator as a process of its own, as containers run it."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx


@dataclass
class Simulator:
    """A running simulator and what it prints."""

    process: subprocess.Popen[str]
    port: int
    http: httpx.Client = field(repr=False)

    def get(self, path: str, **options: object) -> httpx.Response:
        return self.http.get(path, **options)  # type: ignore[arg-type]

    def post(self, path: str, body: object, **options: object) -> httpx.Response:
        return self.http.post(path, json=body, **options)  # type: ignore[arg-type]

    def wait_until_open(self) -> None:
        """Wait until the port answers at all."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                self.get("/ping")
            except httpx.TransportError:
                assert self.process.poll() is None, self.log()
                time.sleep(0.02)
            else:
                return
        raise AssertionError("the port never opened")

    def wait_until_ready(self) -> Simulator:
        self.wait_until_open()
        deadline = time.monotonic() + 10
        while self.get("/ready").status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return self

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def exit_code(self) -> int:
        """Wait for the end; as Python has it, -9 is SIGKILL, the shell's 137."""
        return self.process.wait(timeout=10)

    def end(self) -> None:
        """Kill it, whatever it is doing."""
        self.http.close()
        self.process.kill()
        self.process.wait()
        if self.process.stderr:
            self.process.stderr.close()

    def log(self) -> str:
        """All that it printed; only after its end."""
        self.process.wait(timeout=10)
        assert self.process.stderr is not None
        return self.process.stderr.read()


Start = Callable[..., Simulator]  # arguments of the command line; by keyword, environment variables


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
