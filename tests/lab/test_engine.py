"""Engines and NVIDIA's toolkit on blank hosts, from repositories that this test builds and signs.

Docker's packages are the distribution's under Docker's names, so they really run. The toolkit's hold a stand-in for
nvidia-ctk, and units that really run it.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Lab
from snapshots import snapshot
from vendor import Vendor

pytestmark = pytest.mark.lab
VERSION, NEWER, OLD = "1.20.1-1", "1.21.0-1", "1.17.8-1"
TOOLKIT = ("nvidia-container-toolkit", "nvidia-container-toolkit-base", "libnvidia-container-tools",
           "libnvidia-container1")  # fmt: skip
CODENAMES = {"debian12": "bookworm", "debian13": "trixie"}

# A GPU's devices, and a library that names the driver's version, as the real program writes them.
CTK = """#!/bin/sh
[ "$1" = --version ] && echo "NVIDIA Container Toolkit CLI version @" && exit
out=${NVIDIA_CTK_CDI_OUTPUT_FILE_PATH:-/dev/stdout}
for word; do case $word in --output=*) out=${word#--output=};; esac; done
driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader | head -n 1)
library=/usr/lib/x86_64-linux-gnu/libcuda.so.$driver
touch "$library"; mkdir -p "$(dirname "$out")"
{
  echo 'cdiVersion: 0.5.0'; echo 'kind: nvidia.com/gpu'; echo 'devices:'
  for gpu in $(nvidia-smi --query-gpu=index --format=csv,noheader); do
    echo "    - name: \\"$gpu\\""; echo '      containerEdits:'; echo '        deviceNodes:'
    echo "            - path: /dev/nvidia$gpu"
  done
  echo 'containerEdits:'; echo '    mounts:'; echo "        - hostPath: $library"
  echo "          containerPath: $library"; echo '          options: [ro, bind]'
} > "$out"
"""
SERVICE = """[Unit]
ConditionPathExists=/usr/bin/nvidia-ctk
[Service]
Type=oneshot
RemainAfterExit=yes
Environment=NVIDIA_CTK_CDI_OUTPUT_FILE_PATH=/var/run/cdi/nvidia.yaml
ExecCondition=/usr/bin/grep -q /nvidia.ko /lib/modules/%v/modules.dep
ExecStart=/usr/bin/nvidia-ctk cdi generate
[Install]
WantedBy=multi-user.target
"""
PATH = "[Path]\nPathChanged=/lib/modules/%v/modules.dep\n[Install]\nWantedBy=multi-user.target\n"
# As the vendor's own does, and only where no unit of anybody's has failed.
ENABLE = """#!/bin/sh
systemctl --quiet is-system-running || exit 0
systemctl daemon-reload; systemctl enable --now nvidia-cdi-refresh.path nvidia-cdi-refresh.service
"""

# The distribution's packages under Docker's names. What they need is left as it is, but for each other.
REPACK = r"""
set -e; rm -rf /var/tmp/ce; mkdir -p /var/tmp/ce; cd /var/tmp/ce
for pair in PAIRS; do
  from=${pair%:*} to=${pair#*:}; apt-get download -qq $from 2>/dev/null; dpkg-deb -R ${from}_*.deb $to
  sed -i -e "s/^Package: .*/Package: $to/" -e 's/^Version: .*/Version: FULL/' -e 's/containerd ([^)]*)/containerd.io/' \
    -e '/^\(Source\|Built-Using\|Conflicts\|Breaks\|Replaces\|Provides\|Recommends\|Suggests\):/d' $to/DEBIAN/control
  printf 'Conflicts: docker.io, docker-cli\nReplaces: docker.io, docker-cli\n' >> $to/DEBIAN/control
  dpkg-deb -Znone -b $to $to.deb >/dev/null
done
"""
PREPARE = (  # a host with a driver, whose static specification of the lab is not there
    "rm -f /etc/cdi/nvidia.yaml; mkdir -p /lib/modules/$(uname -r); "
    "echo kernel/drivers/video/nvidia.ko: > /lib/modules/$(uname -r)/modules.dep"
)
# Once docker.io is gone and docker-ce is not there yet. (The brackets keep pgrep from finding this very command.)
KILL = (
    "for i in $(seq 900); do [ -e /usr/bin/dockerd ] || { kill -9 $(pgrep -x apt-get) $(pgrep -x dpkg) "
    "$(pgrep -f '[A]nsiballZ_container_engine'); echo killed; break; }; sleep 0.05; done"
)
# An image that can do nothing but sleep.
TINY = (
    "tar -C / -c bin lib lib64 usr/bin/sleep usr/lib64 $(cd /; ls usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2 "
    "usr/lib/x86_64-linux-gnu/libc.so.6) 2>/dev/null | ENGINE import - tiny"
)


def toolkit(vendor: Vendor, version: str, units: bool = True) -> None:
    """The four packages; `units` as those from 1.18 on have them."""
    files = {"/usr/bin/nvidia-ctk": CTK.replace("@", version)}
    if units:
        files |= {"/usr/lib/systemd/system/nvidia-cdi-refresh.service": SERVICE,
                  "/usr/lib/systemd/system/nvidia-cdi-refresh.path": PATH}  # fmt: skip
    first, base, tools, library = TOOLKIT
    vendor.publish(base, version, files=files, scripts={"postinst": ENABLE} if units else None)
    vendor.publish(library, version)
    vendor.publish(tools, version, f"{library} (= {version})")
    vendor.publish(first, version, f"{base} (= {version}), {tools} (= {version})")


class Docker(Vendor):
    """A repository with suites, as Docker's is."""

    def __init__(self, folder: Path, address: str, codename: str) -> None:
        self.codename = codename
        super().__init__(folder, address)
        (self.root / "debian").symlink_to(".")
        (self.root / "dists").mkdir()
        (self.root / "dists" / codename).symlink_to("..")
        (self.root / "stable").mkdir()
        (self.root / "stable" / "binary-amd64").symlink_to("..")
        (self.root / "gpg").symlink_to("key.asc")

    def sign(self) -> None:
        super().sign()
        release = (self.folder / "Release").read_text()
        again = re.sub(r"^( \w+ \d+ )Packages$", r"\1stable/binary-amd64/Packages", release, flags=re.MULTILINE)
        (self.folder / "Release").write_text(f"Codename: {self.codename}\n{again}")
        (self.root / "InRelease").write_text(
            self._gpg("--clearsign", "--local-user", f"={self._user}", "--output", "-", str(self.folder / "Release")))


def sign_too_late(vendor: Vendor) -> None:
    """With a key that had expired before it signed: newer versions of apt take whatever was signed in time."""
    user = "Late Vendor"
    vendor._gpg("--faked-system-time", "20200101T000000", "--quick-gen-key", user, "rsa2048", "sign", "never")
    vendor._user = user
    vendor.sign()
    (fingerprint,) = re.findall(r"^fpr:+(\w+):", vendor._gpg("--with-colons", "--list-keys", user), re.MULTILINE)
    vendor._gpg("--faked-system-time", "20200102T000000", "--quick-set-expire", fingerprint, "1d")
    (vendor.root / "key.asc").write_text(vendor._gpg("--armor", "--export", fingerprint))


@dataclass
class Ran:
    result: dict[str, Any]
    text: str

    @property
    def warnings(self) -> str:
        return " ".join(self.result["sglang_ops"]["warnings"])

    @property
    def added(self) -> dict[str, str]:
        """By file or list, the lines that `--diff` shows as new."""
        parts = re.findall(r"^\+\+\+ after: (.+)\n((?:[-+@ ].*\n)*)", self.text, re.MULTILINE)
        return {name: "\n".join(line[1:] for line in body.splitlines() if line.startswith("+")) for name, body in parts}


@dataclass
class Site:
    """A lab and the two vendors that it can reach."""

    lab: Lab
    system: str
    docker: Docker
    nvidia: Vendor

    @property
    def version(self) -> str:
        return f"5:28.5.1-1~debian.{self.system[-2:]}~{CODENAMES[self.system]}"

    def command(self, host: int, *arguments: str, **variables: Any) -> list[str]:
        given = {
            "repository": self.docker.url, "toolkit_repository": self.nvidia.url,
            "toolkit_repository_key": self.nvidia.key,
        } | variables  # fmt: skip
        given = {f"container_engine_{name}": value for name, value in given.items() if name != "engine"}
        given["container_engine"] = variables.get("engine", "docker")
        return [
            str(Path(sys.executable).parent / "ansible-playbook"), "-v", "-i", str(self.lab.inventory),
            "--limit", self.lab.hosts[host], "-e", json.dumps(given), "playbooks/engine.yml", *arguments,
        ]  # fmt: skip

    def play(self, host: int, *arguments: str, **variables: Any) -> Ran:
        """Run the role as a user of plain Ansible does."""
        done = subprocess.run(
            self.command(host, *arguments, **variables), cwd=ROOT, capture_output=True, text=True, check=False)
        found = re.findall(r"=> (\{.*\})", done.stdout)
        assert found, done.stdout + done.stderr
        return Ran(json.loads(found[-1]), done.stdout + done.stderr)

    def ssh(self, host: int, command: str) -> str:
        return self.lab.ssh(command, self.lab.hosts[host])

    def installed(self, host: int, names: Iterable[str]) -> dict[str, str]:
        shown = self.ssh(host, "dpkg-query -W -f '${Package} ${Version}\n' " + " ".join(names))
        return dict(line.split() for line in shown.splitlines())

    def fetch(self, host: int, path: str) -> bytes:
        full = ["ssh", "-F", str(self.lab.folder / "ssh" / "config"), self.lab.hosts[host], "sudo", "cat", path]
        return subprocess.run(full, capture_output=True, check=True).stdout


# On one system what is the same code on both.
BOTH = ["debian13", pytest.param("debian12", marks=pytest.mark.slow)]
EVERY = pytest.mark.parametrize("site", BOTH, indirect=True, scope="module")
ONE = pytest.mark.parametrize("site", ["debian13"], indirect=True, scope="module")


@pytest.fixture(scope="module")
def site(request: pytest.FixtureRequest, make_lab: Callable[..., Lab], tmp_path_factory: pytest.TempPathFactory
         ) -> Iterator[Site]:  # fmt: skip
    system = request.param
    lab = make_lab(f"t-eng{system[-2:]}", hosts=2, gpus=2, engine="docker", os=system, server="simulator")
    inventory = lab.inventory.read_text()
    gateway = re.findall(r"198\.18\.\d+\.", inventory)[0] + "1"
    folder = tmp_path_factory.mktemp("vendors")
    nvidia = Vendor(folder / "nvidia", gateway)
    (nvidia.root / "deb").mkdir()
    (nvidia.root / "deb" / "amd64").symlink_to("..")
    docker = Docker(folder / "docker", gateway, CODENAMES[system])
    made = Site(lab, system, docker, nvidia)
    pairs = "docker.io:docker-ce" + (" docker-cli:docker-ce-cli" if system == "debian13" else "")
    script = REPACK.replace("PAIRS", pairs).replace("FULL", made.version)
    lab.ssh(script, lab.hosts[1])
    for pair in pairs.split():
        name = pair.partition(":")[2]
        (docker.root / f"{name}.deb").write_bytes(made.fetch(1, f"/var/tmp/ce/{name}.deb"))
    docker.publish("containerd.io", "1.7.28-1", "containerd, runc")
    for name in ("docker-ce", "docker-ce-cli") if system == "debian13" else ("docker-ce",):
        docker.publish(name, made.version.replace("28.5.1", "28.5.2"), "containerd.io")
    if system == "debian12":  # its docker.io holds the client
        docker.publish("docker-ce-cli", made.version)
    toolkit(nvidia, OLD, units=False)
    toolkit(nvidia, VERSION)
    toolkit(nvidia, NEWER)
    for host in lab.hosts:
        lab.ssh(PREPARE, host)
    yield made
    docker.close()
    nvidia.close()


@pytest.fixture
def pinned(site: Site) -> dict[str, Any]:
    return {"source": "docker", "version": "28.5.1", "daemon": {"log-opts": {"max-size": "50m"}}}


@EVERY
def test_dry_run_on_a_blank_host_changes_nothing_and_shows_everything(site: Site, pinned: dict[str, Any]) -> None:
    before = snapshot(site.lab, site.lab.hosts[0])
    announced = site.play(0, "--check", "--diff", **pinned)
    assert snapshot(site.lab, site.lab.hosts[0]) == before
    assert announced.result["changed"]
    shown = announced.added
    assert f"URIs: {site.docker.url}/debian\n" in shown["/etc/apt/sources.list.d/docker-ce.sources"]
    assert f"URIs: {site.nvidia.url}/deb/amd64\n" in shown["/etc/apt/sources.list.d/nvidia-container-toolkit.sources"]
    assert json.loads(shown["/etc/docker/daemon.json"])["log-opts"] == {"max-size": "50m"}
    packages = ["docker-ce=28.5.1", "docker-ce-cli=28.5.1", "containerd.io"]
    assert shown["packages"].split() == packages + [f"{name}={VERSION}" for name in TOOLKIT]
    assert shown["units"].split() == ["nvidia-cdi-refresh.path", "nvidia-cdi-refresh.service"]
    assert "there is none" in shown["CDI specification"]


@ONE
def test_a_repository_that_does_not_work_leaves_the_host_as_it_was(site: Site, pinned: dict[str, Any]) -> None:
    def sources() -> str:
        return site.ssh(0, "ls /etc/apt/sources.list.d /etc/docker; command -v docker")

    before = sources()
    site.docker.close()
    unreachable = site.play(0, **pinned)
    site.docker.open()
    assert f"docker-ce cannot be fetched from {site.docker.url}/debian/gpg" in unreachable.result["msg"]
    assert "name a mirror" in unreachable.result["msg"]
    sign_too_late(site.nvidia)
    expired = site.play(0, toolkit="true", **pinned)
    site.nvidia.new_key()
    site.nvidia.sign()
    assert "has expired" in expired.result["msg"]
    assert site.nvidia.url in expired.result["msg"]
    assert sources().replace("docker-ce.sources\n", "") == before  # that one works
    absent = site.play(0, **pinned | {"version": "27.0.0"})
    assert "docker-ce 27.0.0 is in no repository of this host, which has 28.5.2, 28.5.1." in absent.result["msg"]
    assert "/usr/bin/docker" not in sources()


@EVERY
def test_a_blank_host_gets_what_was_pinned_though_newer_ones_exist(site: Site, pinned: dict[str, Any]) -> None:
    site.ssh(0, "systemd-run --unit=failed false; sleep 0.5")  # then the packages do not enable their units
    made = site.play(0, **pinned)
    assert made.result["changed"], made.text
    wanted = dict.fromkeys(("docker-ce", "docker-ce-cli"), site.version) | dict.fromkeys(TOOLKIT, VERSION)
    assert site.installed(0, wanted) == wanted
    assert set(site.ssh(0, "apt-mark showhold").split()) == {*TOOLKIT, "docker-ce", "docker-ce-cli"}
    assert site.ssh(0, "systemctl is-active docker nvidia-cdi-refresh.path nvidia-cdi-refresh.service").split() == [
        "active"] * 3  # fmt: skip
    assert site.ssh(0, "systemctl is-enabled docker nvidia-cdi-refresh.path nvidia-cdi-refresh.service").split() == [
        "enabled"] * 3  # fmt: skip
    assert "/dev/nvidia1" in site.ssh(0, "cat /run/cdi/nvidia.yaml")
    assert "nvidia" not in site.ssh(0, "cat /etc/docker/daemon.json; docker info --format '{{.Runtimes}}'")
    assert NEWER in site.ssh(0, "apt-cache madison nvidia-container-toolkit")
    site.ssh(0, "apt-get -qqy dist-upgrade; systemctl reset-failed")
    assert site.installed(0, wanted) == wanted
    again = site.play(0, **pinned)
    assert not again.result["changed"], again.text


@ONE
def test_a_container_gets_its_gpu_and_a_stale_specification_is_renewed(site: Site, pinned: dict[str, Any]) -> None:
    site.ssh(0, "sed -i s/580.95.05/580.105.08/ /etc/sglang-ops-lab/gpus.json")
    renewed = site.play(0, "--diff", **pinned)
    assert renewed.added == {"CDI specification": "written anew: /var/run/cdi/nvidia.yaml is for driver 580.95.05, and "
                                         "580.105.08 runs"}  # fmt: skip
    assert "libcuda.so.580.105.08" in site.ssh(0, "cat /run/cdi/nvidia.yaml")
    site.ssh(0, "sed -i '/name: \"1\"/,/nvidia1/d' /run/cdi/nvidia.yaml")
    assert "it lacks GPU 1" in str(site.play(0, **pinned).result["sglang_ops"]["steps"])
    assert 'name: "1"' in site.ssh(0, "cat /run/cdi/nvidia.yaml")
    site.ssh(0, TINY.replace("ENGINE", "docker"))
    site.ssh(0, "docker run -d --name it --device nvidia.com/gpu=1 tiny /usr/bin/sleep 300")
    inside = site.ssh(0, "ls /proc/$(docker inspect it -f '{{.State.Pid}}')/root/dev")
    assert "nvidia1" in inside
    assert "nvidia0" not in inside


@EVERY
def test_podman_and_a_toolkit_without_units(site: Site) -> None:
    variables = {"engine": "podman", "toolkit_version": OLD}
    made = site.play(1, **variables)
    assert made.result["changed"], made.text
    assert "libcuda.so" in site.ssh(1, "cat /etc/cdi/nvidia.yaml")
    assert not site.play(1, **variables).result["changed"]
    site.ssh(1, TINY.replace("ENGINE", "podman"))
    site.ssh(1, "podman run -d --network host --name it --device nvidia.com/gpu=0 tiny /usr/bin/sleep 300")
    inside = site.ssh(1, "ls /proc/$(podman inspect it -f '{{.State.Pid}}')/root/dev")
    assert "nvidia0" in inside
    assert "nvidia1" not in inside
    site.ssh(1, "podman rm -ft0 it")


@ONE
def test_an_engine_that_runs_containers_is_not_disturbed(site: Site, pinned: dict[str, Any]) -> None:
    site.ssh(1, "mkdir -p /etc/docker; echo '{\"log-level\": \"warn\"}' > /etc/docker/daemon.json")
    assert site.play(1, toolkit="false").result["changed"]
    site.ssh(1, TINY.replace("ENGINE", "docker"))
    site.ssh(1, "docker run -d --name it tiny /usr/bin/sleep 600")
    started = site.ssh(1, "systemctl show -p MainPID docker; docker inspect it -f '{{.State.StartedAt}}'")

    kept = site.play(1, toolkit="false", source="docker", replace=True)
    assert not kept.result["changed"]
    assert "would stop the 1 containers" in kept.warnings
    asked = {"toolkit": "false", "daemon": {"log-opts": {"max-size": "9m"}, "max-concurrent-downloads": 7}}
    merged = site.play(1, **asked)
    assert merged.result["changed"]
    settings = json.loads(site.ssh(1, "cat /etc/docker/daemon.json"))
    assert {"log-level", "log-opts", "max-concurrent-downloads", "insecure-registries"} <= set(settings)
    again = site.play(1, **asked)
    assert not again.result["changed"]
    for ran in (merged, again):
        assert "log-opts in /etc/docker/daemon.json will take effect when docker starts the next time" in ran.warnings
    assert site.ssh(1, "systemctl show -p MainPID docker; docker inspect it -f '{{.State.StartedAt}}'") == started

    refused = site.play(1, **asked | {"daemon": {"log-options": {"max-size": "9m"}}})
    assert refused.result["exit_hint"] == 7
    assert "option: max-size. Correct container_engine_daemon." in refused.result["msg"]
    restarted = site.play(1, restart=True, **asked)
    assert restarted.result["sglang_ops"]["steps"] == ["restart docker"]
    assert restarted.warnings == ""
    assert site.ssh(1, "systemctl show -p MainPID docker") not in started
    twice = asked | {"daemon": {"hosts": ["tcp://127.0.0.1:2375"]}}  # docker's unit names hosts as well
    failed = site.play(1, restart=True, **twice)
    assert "specified both as a flag and in the configuration file: hosts" in failed.result["msg"]
    assert json.loads(site.ssh(1, "cat /etc/docker/daemon.json")) == settings
    assert site.ssh(1, "systemctl is-active docker") == "active\n"


@pytest.mark.slow
@ONE
def test_killed_in_the_middle_of_an_exchange_the_next_run_completes_it(site: Site, pinned: dict[str, Any]) -> None:
    exchange = pinned | {"replace": True, "restart": True, "toolkit_version": VERSION}
    child = subprocess.Popen(
        site.command(1, **exchange), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    killed = site.ssh(1, KILL)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert "killed" in killed
    completed = site.play(1, **exchange)
    assert completed.result["changed"], completed.text
    assert site.ssh(1, "dpkg-query -W -f '${Version} ${db:Status-Status}' docker-ce") == f"{site.version} installed"
    assert "tiny" in site.ssh(1, "docker images")
    assert "log-level" in site.ssh(1, "cat /etc/docker/daemon.json")
    assert site.ssh(1, "dpkg --audit; dpkg-query -W -f '${db:Status-Status}' docker.io") in ("", "config-files")
    assert not site.play(1, **exchange).result["changed"]
