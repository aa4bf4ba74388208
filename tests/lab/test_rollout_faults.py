"""What goes wrong in the middle of a roll-out behind a gateway: who notices, what is left, how it goes on."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest
from conftest import Lab

from bench import bad, killed, matrix
from bench.faults import Fleet

pytestmark = [pytest.mark.lab, pytest.mark.slow]
SAMPLE = 6  # of the events at which a controller may die
CELLS = ("gate/hang", "stop/rebooted", "drain/cut")
QUICK = ("--soak", "1")
NUMBERS = count(int(time.time()))


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., Lab]) -> Lab:
    return make_lab("t-dfault", hosts=3, gpus=1, server="simulator", gateway=True)


@pytest.fixture(scope="module")
def fleet(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    return Fleet(lab.inventory, tmp_path_factory.mktemp("fleet"))


@pytest.fixture
def settled(fleet: Fleet) -> Fleet:
    """All hosts serve one stable release."""
    killed.settle(fleet, release(fleet))
    return fleet


def release(fleet: Fleet, **variables: str) -> Path:
    return fleet.release(f"{next(NUMBERS)}", **variables)


def releases(fleet: Fleet) -> list[str | None]:
    return [seen.release for seen in fleet.look().values()]


def printed(text: str, verb: str) -> list[str]:
    """The command for `verb` among those that were printed, less the program's name."""
    (line,) = {line.strip() for line in text.splitlines() if line.strip().startswith(f"sglang-ops {verb} ")}
    return shlex.split(line)[1:]


def said(fleet: Fleet, config: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """A deploy as a person reads it."""
    return fleet.ops("deploy", "-c", str(config), "--yes", *QUICK, *flags)


def test_bad_releases_reach_what_they_may_and_are_noticed_in_time(settled: Fleet) -> None:
    rows = list(bad.run(settled, [], print))
    print("\n".join(bad.report(rows)))
    assert len(rows) == len(bad.RELEASES)
    assert [row.name for row in rows if row.wrong] == []


def test_controller_that_dies_loses_nothing_and_the_same_command_finishes(fleet: Fleet) -> None:
    rows = list(killed.sweep(fleet, lambda events: range(20, events, (events - 20) // SAMPLE + 1), print))
    print("\n".join(killed.report(rows)))
    assert len(rows) == SAMPLE
    assert [row.event for row in rows if row.wrong] == []


def test_a_sample_of_the_matrix(fleet: Fleet, lab: Lab) -> None:
    rows = list(matrix.run(fleet, CELLS, lab.name, print))
    print("\n".join(matrix.report(rows)))
    assert len(rows) == len(CELLS)
    assert [(row.step, row.fault) for row in rows if row.wrong] == []


def test_without_rollback_the_failed_host_stays_for_inspection_and_the_printed_command_mends_it(settled: Fleet) -> None:
    old = releases(settled)
    done = said(settled, release(settled, SGLANG_SIMULATOR_FAULT="never-healthy"), "--no-rollback", "--start-timeout=8")
    assert done.returncode == 4, done.stderr
    assert "auto_rollback is false" in done.stderr
    first = settled.look_at(settled.hosts[0])
    assert (first.active, first.release != old[0], first.stable == old[0]) == ("active", True, True)
    assert releases(settled)[1:] == old[1:]
    watch = settled.watch()
    assert watch.listed() == {settled.url(host) for host in settled.hosts[1:]}
    assert settled.ops("logs", *printed(done.stderr, "logs")[3:]).returncode == 0
    mended = settled.ops("rollback", *printed(done.stderr, "rollback")[3:])
    assert mended.returncode == 0, mended.stderr
    assert releases(settled) == old
    assert watch.listed() == {settled.url(host) for host in settled.hosts}


def test_where_going_back_fails_too_the_rest_serves_and_the_printed_commands_mend_it(settled: Fleet) -> None:
    old, host = releases(settled), settled.hosts[0]
    broken = f"mkdir -p {bad.DROP_IN}; printf '[Service]\\nExecStartPre=/bin/false\\n' > {bad.DROP_IN}/x.conf"
    settled.ssh(host, f"{broken}; systemctl daemon-reload")
    with settled.asked() as (load, watch):
        done = said(settled, release(settled))
    assert done.returncode == 4, done.stderr
    assert f"{host} failed at start" in done.stderr
    assert "does not serve on this host" in done.stderr
    assert load.lost == []
    assert watch.fewest == len(settled.hosts) - 1
    assert releases(settled)[1:] == old[1:]
    settled.ssh(host, f"rm -r {bad.DROP_IN}; systemctl daemon-reload")
    mended = settled.ops("rollback", *printed(done.stderr, "rollback")[3:])
    assert mended.returncode == 0, mended.stderr
    assert releases(settled) == old
    again = settled.ops("deploy", *printed(done.stderr, "deploy")[3:])
    assert again.returncode == 0, again.stderr


def test_a_gate_in_doubt_pauses_and_both_ways_lead_on(settled: Fleet) -> None:
    old = releases(settled)
    config = release(settled)
    config.write_text(
        config.read_text() + "rollout:\n  gate: {prompt: 'What is 2+2?', expect: '4', max_tokens: 32768}\n"
    )
    done = said(settled, config)
    assert done.returncode == 2, done.stderr
    assert "inconclusive" in done.stderr
    assert releases(settled)[1:] == old[1:]
    assert settled.ops("rollout status").returncode == 2
    undone = settled.ops("rollout undo")
    assert undone.returncode == 0, undone.stderr
    assert releases(settled) == old

    assert said(settled, config).returncode == 2
    resumed = settled.ops("rollout resume", "-c", str(config))
    assert resumed.returncode == 0, resumed.stderr
    assert len(set(releases(settled))) == 1
    assert releases(settled) != old


@pytest.fixture
def moved_tag(settled: Fleet) -> Iterator[Callable[[], str]]:
    """`moved_tag()` gives the deployment's tag another digest, with the same content, and returns it."""
    registry, _, tag = settled.deployment["image"].partition("/")
    name, _, tag = tag.partition(":")
    url = f"http://{registry}/v2/{name}/manifests/{tag}"
    accept = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"
    with urllib.request.urlopen(urllib.request.Request(url, headers={"Accept": accept}), timeout=10) as answer:
        kind, before = answer.headers["Content-Type"], answer.read()

    def put(body: bytes) -> str:
        request = urllib.request.Request(url, body, {"Content-Type": kind}, method="PUT")
        with urllib.request.urlopen(request, timeout=10) as answer:
            return str(answer.headers["Docker-Content-Digest"])

    yield lambda: put(json.dumps(json.loads(before) | {"annotations": {"moved": f"{time.time()}"}}).encode())
    put(before)


def test_a_tag_that_moves_while_a_roll_out_is_unfinished_does_not_split_the_fleet(
    settled: Fleet, moved_tag: Callable[[], str]
) -> None:
    config = release(settled)
    deploy = settled.begin(config)
    for event in deploy.events():
        data = event.get("event_data") or {}
        if event["event"] == "runner_on_start" and data.get("host") == settled.hosts[1] and matrix.in_turn(data):
            break
    deploy.kill()  # the first host is done
    began = settled.look_at(settled.hosts[0]).release
    digest = moved_tag()
    shown = settled.ops("deploy", "-c", str(config), "--check")
    assert f"is {digest[:19]} by now" in re.sub(r"\s+", " ", shown.stdout + shown.stderr)
    done = settled.deploy(config)
    assert done["exit_code"] == 0, done
    assert any("goes on with the image that it began with" in text for text in done["warnings"])
    assert settled.hosts[0] not in {host for batch in done["rollout"]["batches"] for host in batch}
    assert releases(settled) == [began] * 3
    newer = settled.deploy(config)
    assert newer["exit_code"] == 0, newer
    assert {service["image_digest"] for host in newer["hosts"][:3] for service in host["services"]} == {digest}
