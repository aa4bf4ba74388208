"""What verbs that ask all hosts one thing have in common: what is kept and said of it, and who could not be asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sglang_ops.commands import _common, _views
from sglang_ops.errors import ExitCode
from sglang_ops.runs import RunFolder


@dataclass(frozen=True)
class Look:
    """One verb that looks: on which hosts, where it keeps what it found, and how it was typed."""

    target: _common.Target
    folder: RunFolder
    again: str
    json: bool

    def end(
        self,
        played: _common.Played,
        data: Mapping[str, Any],
        shown: Callable[[], None] = lambda: None,
        code: ExitCode | None = None,
    ) -> ExitCode:
        """Keep and print what was found: `data` as JSON, or by `shown` for people; then every host that failed."""
        code = played.exit_code if code is None else code
        failures = [{"host": failure.host, "cause": failure.cause} for failure in played.state.failures]
        told = {"ok": code is ExitCode.DONE, "exit_code": int(code), **data, "failures": failures}
        _common.keep(self.folder, told, hosts=len(played.state.hosts), seconds=played.seconds)
        if self.json:
            _common.print_json(told)
        elif not played.interrupted:
            shown()
        err = _common.stderr()
        if played.interrupted:
            _views.interrupted(err, played.state, self.again)
        else:
            _views.failures(err, played.state.failures, self.folder, self.target, self.again)
        return code
