"""What the kernel, the driver and NVIDIA's programs say of the GPUs, as `doctor` judges it. Reads only.

Python 3.8, standard library.
"""

from __future__ import annotations

import glob
import os
import re
import shutil

from ansible.module_utils.sglang_host_command import run
from ansible.module_utils.sglang_host_state import read_text

_PCI = "/sys/bus/pci/devices"
_VENDOR = "0x10de"
_DISPLAY = ("0x0300", "0x0302")  # VGA and 3D controllers
_BRIDGE = "0x0680"  # what an NVSwitch says it is
_LIBRARIES = ("/usr/lib/*-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/lib/*-linux-gnu/nvidia/current")
# Fields of `nvidia-smi --query-gpu` by the names they have here; older drivers do not know all of them.
_HEALTH = {
    "bus_id": "pci.bus_id",
    "persistence": "persistence_mode",
    "ecc_uncorrected": "ecc.errors.uncorrected.volatile.total",
    "remap_pending": "remapped_rows.pending",
    "remap_failed": "remapped_rows.failure",
    "fabric": "fabric.state",
    "capability": "compute_cap",
}
_LOG_LINES = 20000  # of the kernel since it booted
_LOG_KEPT = 20
_SECONDS = 60


def pci(root=_PCI):
    """(GPUs, NVSwitches) on the bus: {"address", "driver"}, however well they work."""
    gpus, switches = [], []
    for path in sorted(glob.glob(os.path.join(root, "*"))):
        if (read_text(os.path.join(path, "vendor")) or "").strip() != _VENDOR:
            continue
        kind = (read_text(os.path.join(path, "class")) or "")[:6]
        link = os.path.join(path, "driver")
        device = {"address": os.path.basename(path).lower(),
                  "driver": os.path.basename(os.path.realpath(link)) if os.path.exists(link) else ""}
        if kind in _DISPLAY:
            gpus.append(device)
        elif kind == _BRIDGE:
            switches.append(device)
    return gpus, switches


def health():
    """By GPU number, what nvidia-smi says of its health; {} where it says nothing."""
    fields = dict(_HEALTH)
    while fields:
        query = ",".join(["index", *fields.values()])
        done = run("nvidia-smi", "--query-gpu=" + query, "--format=csv,noheader,nounits", timeout=_SECONDS)
        if done.ok:
            return table(done.stdout, list(fields))
        unknown = re.search(r'Field "([^"]+)" is not a valid field', done.stdout + done.stderr)
        kept = {name: field for name, field in fields.items() if unknown and field != unknown.group(1)}
        if len(kept) == len(fields):
            return {}
        fields = kept
    return {}


def table(text, names):
    """Rows of nvidia-smi as {number: {name: value}}. Pure."""
    rows = [[cell.strip() for cell in line.split(",")] for line in text.splitlines() if line.strip()]
    whole = [row for row in rows if len(row) == len(names) + 1 and row[0].isdigit()]
    return {row[0]: {name: row[place] for place, name in enumerate(names, 1)} for row in whole}


def driver():
    """Versions of the loaded kernel module and of the library on disk, "" where there is none."""
    told = read_text("/proc/driver/nvidia/version") or ""
    loaded = re.search(r"Kernel Module(?: for \S+)?\s+(\d+\.\d+(?:\.\d+)?)", told)
    found = [name for place in _LIBRARIES for name in glob.glob(place + "/libnvidia-ml.so.*.*")]
    versions = [os.path.basename(name)[len("libnvidia-ml.so."):] for name in found]
    return {"module": loaded.group(1) if loaded else "", "library": max(versions, key=_numbers, default="")}


def _numbers(version):
    return [int(part) for part in re.findall(r"\d+", version)]


def fabric_manager():
    """Whether the fabric manager runs, and its version; "" where it is not installed."""
    told = run("nv-fabricmanager", "--version", timeout=_SECONDS)
    version = re.search(r"(\d+\.\d+(?:\.\d+)?)", told.stdout + told.stderr) if told.ok else None
    state = run("systemctl", "is-active", "nvidia-fabricmanager", timeout=_SECONDS).stdout.strip()
    return {"version": version.group(1) if version else "", "state": state or "unknown"}


def toolkit():
    """Version of the container toolkit, "" where it is not installed."""
    told = re.search(r"version v?(\d+(?:\.\d+)+)", run("nvidia-ctk", "--version", timeout=_SECONDS).stdout)
    return told.group(1) if told else ""


def programs(paths):
    """Those of `paths` that are not there: programs that a CDI specification has the engine run."""
    return [path for path in paths if not shutil.which(path)]


def hooks(text):
    """Programs that a CDI specification, JSON or YAML, names for its hooks. Pure."""
    after = text.split("hooks", 1)[1] if "hooks" in text else ""
    return sorted(set(re.findall(r"[\"']?path[\"']?:\s*[\"']?(/[^\s\"',]*(?:hook|ctk)[^\s\"',]*)", after)))


def kernel_log():
    """The last lines in which the driver told of a fault since the machine booted."""
    done = run("journalctl", "--dmesg", "--boot", "0", "--quiet", "--no-pager", "--output", "cat",
               "--lines", str(_LOG_LINES), timeout=_SECONDS)
    text = done.stdout if done.ok and done.stdout else run("dmesg", timeout=_SECONDS).stdout
    return faults(text)


def faults(text):
    """The lines of a kernel log that tell of a GPU's fault, each once. Pure."""
    lines = [re.sub(r"^\[[\s\d.]+\]\s*", "", line).strip() for line in text.splitlines()]
    found = [line for line in lines if "NVRM: Xid" in line or ("NVRM" in line and "fallen off the bus" in line)]
    return list(dict.fromkeys(found))[-_LOG_KEPT:]


def gather(cdi):
    """Everything of this module; `cdi` are the specifications that were found."""
    gpus, switches = pci()
    present = bool(shutil.which("nvidia-smi"))
    named = sorted({path for spec in cdi for path in hooks(spec["text"])})
    return {
        "pci": gpus,
        "switches": switches,
        "health": health() if present else {},
        "driver": driver(),
        "fabric_manager": fabric_manager() if present else {"version": "", "state": "inactive"},
        "toolkit": toolkit(),
        "hooks": named,
        "hooks_missing": programs(named),
        "log": kernel_log(),
    }
