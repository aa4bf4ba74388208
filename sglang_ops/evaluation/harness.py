"""The systemd unit that runs an evaluation's container, and the program that it runs. Pure."""

from __future__ import annotations

import io
import shlex
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

from sglang_ops.planning.command import Mount
from sglang_ops.planning.systemd import command, paths, quote

ROOT = "/var/lib/sglang-ops/evaluations"  # as in plugins/module_utils/sglang_host_evaluation.py
IN_CONTAINER = "/evaluation"
_CACHE = "/cache/huggingface"
_PACKAGE = "sglang_ops_agent"
SCRIPT = "containers.sh"
_RUN = ("run", "--rm", "--init", "--pull", "never")
_LONGEST_NAME = 200  # characters of a unit


@dataclass(frozen=True)
class Container:
    """What a run's containers are made of: one for each image, which run one after the other in one unit.

    `hf_home` is the host's cache, in which data sets are kept as well.
    """

    run: str
    service: str
    images: Sequence[str]
    engine: str
    hf_home: str
    environment: Mapping[str, str]
    mounts: Sequence[Mount] = ()
    arguments: Sequence[str] = ()

    @property
    def unit_name(self) -> str:
        return f"{self.service}-evaluation-{self.run}"[:_LONGEST_NAME]

    @property
    def directory(self) -> str:
        return f"{ROOT}/{self.run}"

    def unit(self) -> str:
        """The text of the unit: it goes on after a reboot until the run has ended, and never starts again after."""
        docker = self.engine == "docker"
        remove = f'-/bin/sh -c "exec {self._program} rm --force %N >/dev/null 2>&1"'
        if len(self.images) == 1:
            start = command(
                [
                    (self._program, *_RUN, "--name", "%N"),
                    *[[quote(word) for word in flag] for flag in self._flags],
                    (self.images[0],),
                    (f"{IN_CONTAINER}/agent.pyz", IN_CONTAINER),
                ]
            )
        else:
            start = f"/bin/sh {quote(f'{self.directory}/{SCRIPT}')}"
        return f"""\
# Written by sglang-ops: evaluation {self.run}. `sglang-ops evaluate` stops, resumes and removes it.
[Unit]
Description=Evaluation {self.run} of {self.service}
Wants=network-online.target
After=network-online.target{" docker.service" if docker else ""}
{"Requires=docker.service" if docker else "# podman has no daemon to wait for"}
RequiresMountsFor={paths([mount.source for mount in self._binds])}
ConditionPathExists=!{self.directory}/finished
ConditionPathExists=!{self.directory}/cancelled
StartLimitIntervalSec=600
StartLimitBurst=10

[Service]
Type=exec
SyslogIdentifier=%N
ExecStartPre={remove}
ExecStartPre=/bin/mkdir -p {quote(self.hf_home)}
ExecStart={start}
ExecStopPost={remove}
TimeoutStartSec=300
TimeoutStopSec=30
# 7: refused, 3: the server is gone for long. Every other end than a regular one is gone on from.
Restart=on-failure
RestartSec=5
RestartPreventExitStatus=3 7
SuccessExitStatus=143
KillMode={"mixed" if len(self.images) == 1 else "control-group"}

[Install]
WantedBy=multi-user.target
"""

    def script(self) -> str | None:
        """What the unit of a run with several images runs: all tasks are checked before the first is asked."""
        if len(self.images) == 1:
            return None
        words = [self._program, *_RUN, "--name", self.unit_name, *[word for flag in self._flags for word in flag]]
        lines = [
            f"container {shlex.quote(image)} {what} {stage}"
            for what in ("check", "run")
            for stage, image in enumerate(self.images)
        ]
        return f"""\
#!/bin/sh
# Written by sglang-ops: the containers of evaluation {self.run}, one after the other. Each goes on where it ended.
set -e
container() {{
    {shlex.join(words)} "$1" {IN_CONTAINER}/agent.pyz {IN_CONTAINER} "$2" "$3"
}}
{chr(10).join(lines)}
"""

    @property
    def _program(self) -> str:
        return f"/usr/bin/{self.engine}"

    @property
    def _binds(self) -> list[Mount]:
        return [Mount(self.directory, IN_CONTAINER), Mount(self.hf_home, _CACHE), *self.mounts]

    @property
    def _flags(self) -> list[tuple[str, ...]]:
        variables = {"HF_HOME": _CACHE, "PYTHONDONTWRITEBYTECODE": "1", "TOKENIZERS_PARALLELISM": "false"}
        return [
            ("--network", "host"),
            ("--log-driver", "none" if self.engine == "docker" else "passthrough"),
            *[("--env", f"{name}={value}") for name, value in sorted({**variables, **self.environment}.items())],
            *[("--mount", mount.flag()) for mount in self._binds],
            *[(argument,) for argument in self.arguments],
            ("--entrypoint", "python3"),
        ]


def program() -> bytes:
    """The agent as one file that Python runs; the same sources are the same bytes."""
    packed = io.BytesIO()
    sources = resources.files("sglang_ops.evaluation.agent")
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        start = f"import sys\nfrom {_PACKAGE}.__main__ import main\nsys.exit(main())\n"
        archive.writestr(zipfile.ZipInfo("__main__.py"), start)
        for entry in sorted(sources.iterdir(), key=lambda one: one.name):
            if entry.name.endswith(".py"):
                archive.writestr(zipfile.ZipInfo(f"{_PACKAGE}/{entry.name}"), entry.read_bytes())
    return packed.getvalue()
