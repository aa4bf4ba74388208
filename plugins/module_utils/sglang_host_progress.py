"""Long work on a host: it tells how far it is, and it ends when nobody waits for it any more.

A module without a terminal is not told when its controller goes away: neither sshd nor sudo sends a signal. What
does change is the module's standard output, whose reader is gone; poll() reports that at once, with and without
sudo (use_pty or not), with and without pipelining. `Progress` watches for it and raises `ControllerGone` in the
main thread, so that ordinary ``finally`` blocks clean up. Python 3.8, standard library.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import os
import re
import select
import selectors
import signal
import subprocess
import threading
import time

from ansible.module_utils import sglang_host_lock as lock
from ansible.module_utils.sglang_host_command import Output, environment

DIRECTORY = "/run/sglang-ops"  # in memory; holds no secrets, so the connection's plain user may read it
KEPT_LINES = 200
_WRITE_SECONDS = 0.3
_WATCH_SECONDS = 0.5
_KILL_SECONDS = 5
_GENTLE_SECONDS = 120
_READS = ("gate",)  # looks, and changes nothing that the next operator might not meet
_LINE_END = re.compile(r"[\r\n]+")


class ControllerGone(SystemExit):
    """The connection that started this module is closed. No error: there is nobody to report one to."""


class Progress:
    """Reports progress under a token, and watches the controller.

    Without a token (check mode, or no interest) nothing is written; the controller is watched all the same.
    """

    def __init__(self, token: str | None, step: str = "", directory: str = DIRECTORY, output: int = 1) -> None:
        name = "progress-%s.json" % re.sub(r"\W", "", token or "")
        self._path = os.path.join(directory, name) if token else None
        self._step = step
        self._output = output
        self._last = ("", 0.0)
        self._previous = {}  # type: dict[int, object]
        self._over = threading.Event()
        self._working = lock.working(unless=not token or step in _READS)

    def __enter__(self) -> Progress:
        self._working.__enter__()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGHUP):
                self._previous[number] = signal.signal(number, self._leave)
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._working.__exit__(None, None, None)
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        if self._path:
            with contextlib.suppress(OSError):
                os.unlink(self._path)

    def report(self, detail: str) -> None:
        """Say what is going on, in a few words: ``412 / 700 MB``."""
        text, when = self._last
        now = time.monotonic()
        if self._path is None or detail == text or now - when < _WRITE_SECONDS:
            return
        self._last = (detail, now)
        with contextlib.suppress(OSError):  # progress is a courtesy
            os.makedirs(os.path.dirname(self._path), mode=0o755, exist_ok=True)
            temporary = self._path + ".new"
            with open(temporary, "w", encoding="utf-8") as stream:
                json.dump({"step": self._step, "detail": detail}, stream)
            os.replace(temporary, self._path)

    def run_child(self, argv, on_line=None, on_tick=None, stdin=None, env=None, gentle=False) -> Output:
        """Run a program in a process group of its own, which ends with this call, however it ends.

        `on_line` gets each line of its output (both streams; a carriage return ends a line too), `on_tick` is
        called about once a second; either may raise to end the program. `gentle` is for programs that must not
        be killed in the middle, such as a package manager: they are asked once and waited for.
        """
        try:
            child = subprocess.Popen(
                list(argv), stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
                env=environment(**(env or {})),
            )
        except FileNotFoundError:
            return Output(127, "%s is not installed" % argv[0])
        try:
            if child.stdin:
                with contextlib.suppress(BrokenPipeError), child.stdin as pipe:
                    pipe.write(stdin.encode())
            lines = []  # type: list[str]
            for line in _lines(child, on_tick or (lambda: None)):
                lines[:] = [*lines[-KEPT_LINES:], line]
                if on_line:
                    on_line(line)
            return Output(child.wait(), "\n".join(lines))
        finally:
            end(child, gentle)

    def _watch(self) -> None:
        poller = select.poll()
        poller.register(self._output, 0)  # no events wanted: only POLLERR and POLLHUP are reported
        while not self._over.is_set():
            if poller.poll(_WATCH_SECONDS * 1000):
                if not self._over.is_set():
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
                return

    def _leave(self, _number: int, _frame: object) -> None:
        for number in self._previous:
            signal.signal(number, signal.SIG_IGN)  # once is enough; what follows is cleaning up
        raise ControllerGone(1)


def end(child, gentle: bool = False) -> None:
    """End a program started by `Progress.run_child` (or in a session of its own) and whatever it started."""
    if child.poll() is None:
        if gentle:
            child.send_signal(signal.SIGINT)  # the leader only: apt-get then finishes the dpkg run it is in
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(_GENTLE_SECONDS)
        else:
            for number in (signal.SIGTERM, signal.SIGKILL):  # the second for those who survive their leader
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(_KILL_SECONDS)
    for stream in (child.stdin, child.stdout):
        if stream:
            with contextlib.suppress(OSError):
                stream.close()


def _lines(child, on_tick):
    """The child's output line by line, with a tick every second, until it has ended and said everything."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    rest, ticked = "", time.monotonic()
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while True:
            ended = child.poll() is not None
            ready = selector.select(0 if ended else 0.5)
            chunk = os.read(child.stdout.fileno(), 65536) if ready else b""
            rest += decoder.decode(chunk)
            *complete, rest = _LINE_END.split(rest)
            yield from (line for line in complete if line.strip())
            if time.monotonic() - ticked >= 1:
                ticked = time.monotonic()
                on_tick()
            if (ready and not chunk) or (ended and not ready):
                break
    if rest.strip():
        yield rest
