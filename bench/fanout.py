"""python -m bench.fanout: what it costs to bring a model to many hosts instead of one, in bytes and in seconds.

A lab whose hosts have links of `--link` in each direction. One host alone fetches a model from the lab's hub; then all
of them do. What the hub sent, and how long it took until the last host had verified the last file, are printed beside
the size of the model and the time of the one host.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.markup import escape

from bench import fleet, programs
from bench.process import BenchError, call
from bench.progress import teller
from sglang_ops import content, runner
from sglang_ops.lab import settings
from sglang_ops.lab.model import model_files
from sglang_ops.lab.processes import find_supervisor

RESULTS = Path(__file__).resolve().parent / "results"
SHARDS = 8
MODEL = "bench/fanout"
# What may come at once, and what may wait: the buffers of a switch.
BURST_SECONDS, QUEUE = 0.02, "50ms"


@dataclass
class Round:
    """One model to some hosts. Bytes are those of files that the hub sent."""

    hosts: int
    seconds: float = 0.0
    origin_bytes: int = 0
    givers: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def main(arguments: Sequence[str] | None = None) -> int:
    asked = _parse(arguments)
    console = Console(stderr=True, highlight=False)
    say = teller(console)

    load = os.getloadavg()[0]
    try:
        cli = programs.find("sglang-ops")
        with fleet.lab(cli, asked.hosts, say) as lab, _model(asked.size) as size, tempfile.TemporaryDirectory() as made:
            hub = str(lab.content["all"]["vars"]["sglang_server_hf_endpoint"])
            say("installing the engine and the image")
            bring(lab, lab.hosts, lab.deployment)
            limit_links(lab.hosts, lab, asked.link)
            deployment = _deployment(lab, Path(made))
            say(f"{size / 1e6:.0f} MB to one host over {asked.link}")
            alone = measured(lab, lab.hosts[:1], deployment, hub)
            say(f"{alone.seconds:.1f} s; now to {asked.hosts}")
            call("ssh", "-F", str(lab.ssh_config), lab.hosts[0], "sudo rm -rf /var/lib/sglang-ops/huggingface/hub")
            together = measured(lab, lab.hosts, deployment, hub)
    except BenchError as error:
        console.print(f"[red]Error:[/] {escape(str(error))}", soft_wrap=True)
        return 1
    figures = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpus": os.cpu_count(), "kernel": platform.release(), "load_before": load,
        "link": asked.link, "model_bytes": size, "shards": SHARDS,
        "alone": asdict(alone), "together": asdict(together),
        "origin_ratio": round(together.origin_bytes / size, 3),
        "makespan_ratio": round(together.seconds / alone.seconds, 2),
    }  # fmt: skip
    path = asked.json or RESULTS / f"fanout-{datetime.now(UTC):%Y-%m-%dT%H%M%SZ}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures, indent=2) + "\n")
    print(f"one host        {alone.seconds:6.1f} s   {alone.origin_bytes / 1e6:8.1f} MB from the hub")
    print(f"{asked.hosts} hosts         {together.seconds:6.1f} s   {together.origin_bytes / 1e6:8.1f} MB from the hub")
    print(f"bytes from the hub / model   {figures['origin_ratio']:.3f}   (target 1.0)")
    print(f"time of all / time of one    {figures['makespan_ratio']:.2f}    (target 1.5)")
    say(f"written to {path}")
    return 0


@contextmanager
def _model(size: int) -> Iterator[int]:
    """A model of about `size` random bytes in the lab's hub, as long as the block lasts; yields its exact size."""
    directory = settings.cache_root() / "models" / MODEL
    directory.mkdir(parents=True, exist_ok=True)
    try:
        for name, text in model_files().items():
            (directory / name).write_bytes(text)
        for number in range(1, SHARDS):
            with (directory / f"weights-{number}.safetensors").open("wb") as stream:
                for _ in range(max(1, size // (SHARDS - 1) // (1 << 20))):
                    stream.write(os.urandom(1 << 20))
        yield sum(path.stat().st_size for path in directory.iterdir())
    finally:
        shutil.rmtree(directory.parent)


def _deployment(lab: fleet.Lab, folder: Path) -> Path:
    data = yaml.safe_load(lab.deployment.read_text())
    data["deployment"]["hf_model_handle"] = MODEL
    path = folder / "deployment.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def limit_links(hosts: Sequence[str], lab: fleet.Lab, rate: str) -> None:
    """Each host's cable carries `rate` in each direction: one limit at its own end, one at the bridge's."""
    supervisor = find_supervisor(settings.folder(fleet.NAME))
    burst = max(15_000, int(bits(rate) / 8 * BURST_SECONDS))
    shape = ["root", "tbf", "rate", rate, "burst", str(burst), "latency", QUEUE]
    for host in hosts:
        call("nsenter", "-t", str(supervisor), "-n", "tc", "qdisc", "replace", "dev", f"vb-{host}", *shape)
        call("ssh", "-F", str(lab.ssh_config), host, "sudo", "tc", "qdisc", "replace", "dev", "host0", *shape)


def measured(lab: fleet.Lab, hosts: Sequence[str], deployment: Path, hub: str) -> Round:
    before = sent(hub)
    done = bring(lab, hosts, deployment)
    done.origin_bytes = sent(hub) - before
    return done


def sent(hub: str) -> int:
    """Bytes of the model that the lab's hub has sent so far."""
    with urllib.request.urlopen(f"{hub}/-/traffic", timeout=10) as answer:  # noqa: S310 (the lab's own)
        return int(json.load(answer).get(MODEL, {}).get("bytes", 0))


def bring(lab: fleet.Lab, hosts: Sequence[str], deployment: Path) -> Round:
    """Do what `models pull` does; the time is that of the task that brings the models. Raises BenchError."""
    done, failures, times = Round(len(hosts)), [], []

    def on_event(event: dict[str, Any]) -> None:
        data = event.get("event_data") or {}
        result = (data.get("res") or {}).get("sglang_ops") or {}
        if event["event"] in ("runner_on_failed", "runner_on_unreachable"):
            failures.append(f"{data['host']}: {data['res'].get('msg')}")
        if str(data.get("task_action", "")).endswith("sglang_model") and event["event"] in (
            "runner_on_start", "runner_on_ok",
        ):  # fmt: skip
            times.append(datetime.fromisoformat(event["created"]).timestamp())
            done.givers.update((data["host"], giver) for giver in result.get("peers", {}).values())
            done.warnings += result.get("warnings", [])

    runner.run(
        content.playbook("models_pull"), [str(lab.inventory)], on_event=on_event, limit=",".join(hosts),
        extravars={"sglang_ops_deployment_files": [str(deployment)]},
    )  # fmt: skip
    if failures or not times:
        raise BenchError("; ".join(failures) or "nothing was brought")
    done.seconds = round(max(times) - min(times), 2)
    return done


def link(rate: str) -> str:
    """A rate that tc will take."""
    bits(rate)
    return rate


def bits(rate: str) -> int:
    """200mbit, 1gbit → bits per second, as tc counts."""
    matched = re.fullmatch(r"(\d+)(kbit|mbit|gbit)", rate)
    if not matched:
        raise argparse.ArgumentTypeError(f"'{rate}' is no rate. Write 200mbit or 1gbit.")
    return int(matched[1]) * {"kbit": 10**3, "mbit": 10**6, "gbit": 10**9}[matched[2]]


def count(size: str) -> int:
    """500MB, 1GB → bytes."""
    matched = re.fullmatch(r"(\d+)(MB|GB)", size)
    if not matched:
        raise argparse.ArgumentTypeError(f"'{size}' is no size. Write 500MB or 1GB.")
    return int(matched[1]) * {"MB": 10**6, "GB": 10**9}[matched[2]]


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.fanout", description=__doc__)
    parser.add_argument("--hosts", type=int, default=8, metavar="N")
    parser.add_argument("--size", type=count, default="1GB", metavar="SIZE", help="of the model (default: 1GB)")
    parser.add_argument(
        "--link", type=link, default="200mbit", metavar="RATE", help="each host's, each way (default: 200mbit)"
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="where the figures go (default: bench/results/)")
    asked = parser.parse_args(arguments)
    if asked.hosts < 2:
        parser.error("--hosts must be at least 2")
    return asked


if __name__ == "__main__":
    sys.exit(main())
