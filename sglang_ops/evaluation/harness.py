"""The systemd unit that runs an evaluation's container, and the program that it runs. Pure."""

from __future__ import annotations

import io
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
_LONGEST_NAME = 200  # characters of a unit


@dataclass(frozen=True)
class Container:
    """What a run's container is made of. `hf_home` is the host's cache, in which data sets are kept as well."""

    run: str
    service: str
    image: str
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
        engine = f"/usr/bin/{self.engine}"
        docker = self.engine == "docker"
        remove = f'-/bin/sh -c "exec {engine} rm --force %N >/dev/null 2>&1"'
        binds = [Mount(self.directory, IN_CONTAINER), Mount(self.hf_home, _CACHE), *self.mounts]
        variables = {"HF_HOME": _CACHE, "PYTHONDONTWRITEBYTECODE": "1", "TOKENIZERS_PARALLELISM": "false"}
        flags: list[tuple[str, ...]] = [
            ("--network", "host"),
            ("--log-driver", "none" if docker else "passthrough"),
            *[("--env", f"{name}={value}") for name, value in sorted({**variables, **self.environment}.items())],
            *[("--mount", mount.flag()) for mount in binds],
            *[(argument,) for argument in self.arguments],
            ("--entrypoint", "python3"),
        ]
        start = command(
            [
                (engine, "run", "--rm", "--name", "%N", "--init", "--pull", "never"),
                *[[quote(word) for word in flag] for flag in flags],
                (self.image,),
                (f"{IN_CONTAINER}/agent.pyz", IN_CONTAINER),
            ]
        )
        return f"""\
# Written by sglang-ops: evaluation {self.run}. `sglang-ops evaluate` stops, resumes and removes it.
[Unit]
Description=Evaluation {self.run} of {self.service}
Wants=network-online.target
After=network-online.target{" docker.service" if docker else ""}
{"Requires=docker.service" if docker else "# podman has no daemon to wait for"}
RequiresMountsFor={paths([mount.source for mount in binds])}
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
KillMode=mixed

[Install]
WantedBy=multi-user.target
"""


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
