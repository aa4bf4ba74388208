"""What planning needs to know of a host, as the module `sglang_facts` reports it. Python 3.8, standard library."""

from __future__ import annotations

import os

from ansible.module_utils import sglang_host_arguments as arguments
from ansible.module_utils import sglang_host_engine as engines
from ansible.module_utils import sglang_host_evaluating as evaluating
from ansible.module_utils import sglang_host_files as files
from ansible.module_utils import sglang_host_gateway as gateways
from ansible.module_utils import sglang_host_kernels as kernels
from ansible.module_utils import sglang_host_loaded as loaded
from ansible.module_utils import sglang_host_loads as loads
from ansible.module_utils import sglang_host_lock as lock
from ansible.module_utils import sglang_host_memory as memory
from ansible.module_utils import sglang_host_model as models
from ansible.module_utils import sglang_host_probe as probe
from ansible.module_utils import sglang_host_rollout as rollouts
from ansible.module_utils import sglang_host_routes as routes
from ansible.module_utils import sglang_host_state as store
from ansible.module_utils import sglang_host_systemd as systemd
from ansible.module_utils.sglang_host_command import NOT_FOUND, free_bytes, run

CDI_DIRECTORIES = ("/etc/cdi", "/var/run/cdi")
_GPU_FIELDS = ("index", "uuid", "name", "memory.total", "memory.used", "driver_version")


def gpus():
    """(GPUs, why there are none): what nvidia-smi says."""
    query = ["nvidia-smi", "--query-gpu=" + ",".join(_GPU_FIELDS), "--format=csv,noheader,nounits"]
    done = run(*query)
    if done.rc == NOT_FOUND:
        return [], "nvidia-smi is not installed"
    if not done.ok:
        text = " ".join((done.stdout + done.stderr).split()) or "exit code %d" % done.rc
        return [], "nvidia-smi says: " + text
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines() if line.strip()]
    return [gpu(row) for row in rows if len(row) == len(_GPU_FIELDS) and row[0].isdigit()], None


def gpu(row):
    total, used = (int(cell) if cell.isdigit() else 0 for cell in row[3:5])
    return {"index": int(row[0]), "uuid": row[1], "name": row[2], "memory_total_mib": total,
            "memory_used_mib": used, "driver": row[5]}


def topology():
    """How the GPUs are joined, as nvidia-smi shows it; "" where it cannot tell."""
    done = run("nvidia-smi", "topo", "-m")
    return done.stdout if done.ok else ""


def cdi_specs():
    """CDI specifications of NVIDIA GPUs, as text."""
    found = []
    for directory in CDI_DIRECTORIES:
        names = sorted(os.listdir(directory)) if os.path.isdir(directory) else []
        for name in names:
            path = os.path.join(directory, name)
            text = store.read_text(path) if name.endswith((".yaml", ".yml", ".json")) else None
            if text and "nvidia.com/gpu" in text:
                found.append({"path": path, "text": text})
    return found


def disk(path):
    """Free bytes below `path`, and the file system that it is on, or will be."""
    present = path
    while not os.path.exists(present):
        present = os.path.dirname(present)
    return {"path": path, "free_bytes": free_bytes(present), "device": os.stat(present).st_dev}


def listeners(ports):
    found = []
    for port in ports:
        holder = probe.listener(port)
        if holder:
            found.append({"port": port, "pid": holder[0], "process": holder[1]})
    return found


def services(with_loads):
    """Every service that this tool deployed, its state, and what it answers."""
    names = store.names()
    shown = systemd.show(names)
    found = []
    for name in names:
        state = store.read_state(name)
        record = store.read_record(name, state["release"])
        properties = shown.get(name, {})
        word = systemd.state(properties)
        layers = probe.ask(record["gate"], properties, quick=True) if word == "active" and record else []
        service = dict(state, name=name, record=record, unit=store.read_text(store.unit_path(name)), state=word)
        service.update(rollout=rollouts.read(name), failed_rollouts=rollouts.failed(name))
        service["released_unit"] = store.release_unit(name, state["release"]) if state["release"] else None
        service["probe"] = {"ok": bool(layers) and all(layer["ok"] for layer in layers), "layers": layers}
        if record.get("kind") == "gateway":
            service.update(gateways.facts(record, word == "active", with_loads))
        elif word == "active" and record and not record.get("gpus") and record.get("gateways"):
            service["resident_bytes"] = memory.of_server(record["port"])
        if with_loads:
            service.update(loads.of(record, properties, service["probe"]["ok"]))
        found.append(service)
    return found


def model_facts(wanted, token):
    """The model in the cache, else what another host offers, or the hub says of it; an empty token is none."""
    asked = {key: wanted[key] for key in ("repo", "revision", "hub")}
    cached = models.cached(wanted["hub"], wanted["repo"], wanted["revision"])
    if cached["complete"]:
        found = files.of_directory(cached["path"])
        return dict(asked, commit=cached["commit"], cached=True, bytes=cached["bytes"], files=found)
    if wanted.get("offer"):
        return dict(wanted["offer"], **asked, offered=True)
    try:
        source = models.inspect_source(wanted["repo"], wanted["revision"], wanted.get("endpoint"), token or None)
    except models.SourceError as error:
        return dict(asked, error=str(error), out_of_reach=error.kind in ("unreachable", "rate-limited"))
    found = files.of_hub(source, wanted["repo"], wanted.get("endpoint"), token or None)
    return dict(asked, commit=source["commit"], bytes=source["bytes"], files=found)


def loaded_images(asked, data_root):
    """{image by tag: by digest} of those that were loaded from files, for the time that no registry can be asked."""
    known = {ref: loaded.digest_ref(ref) for ref in asked["unresolved"]}
    there = engines.present(asked["engine"], [ref for ref in known.values() if ref], data_root)
    return {ref: digest_ref for ref, digest_ref in known.items() if there.get(digest_ref)}


def gather(asked):
    """`sglang_ops.planning.facts.HostFacts`, less the host's name, for the parameters of the module."""
    generation = lock.generation()  # first: what others change while this one looks counts as changed
    found, error = gpus()
    engine = engines.facts(asked["engine"], asked["insecure_registries"], asked["wants_cdi"])
    known = store.runtime_environment() if asked["runtime"] else {}
    tokens = asked["tokens"] or [""] * len(asked["models"])
    from_files = loaded_images(asked, engine["data_root"]) if asked.get("unresolved") and engine["version"] else {}
    return {
        "generation": generation,
        "gpus": found,
        "gpu_error": error,
        "topology": topology() if asked.get("topology") and len(found) > 2 else "",
        "cdi": cdi_specs() if asked["wants_cdi"] else [],
        "engine": engine,
        "images": engines.present(asked["engine"], asked["images"], engine["data_root"]) if engine["version"] else {},
        "loaded": from_files,
        "arguments": arguments.known_of([*asked["arguments_of"], *from_files.values()]),
        "models": list(map(model_facts, asked["models"], tokens)),
        "checkpoints": {path: files.of_directory(path) for path in asked["checkpoints"]},
        "listeners": listeners(asked["ports"]),
        "disks": [disk(path) for path in [engine["data_root"]] + asked["disks"]],
        "memory": memory.of_host(),
        "services": services(asked["loads"]),
        "machine": kernels.machine() if asked.get("jit_cache") else "",
        "kernels": kernels.filled(asked.get("jit_cache")),
        "evaluations": evaluating.under_way(),
        "drained": gateways.drained(),
        "interface": routes.interface_to(asked.get("toward")),
        "infiniband": routes.infiniband(),
        "runtime": {name: store.fingerprint(known[name]) if name in known else None for name in asked["runtime"]},
    }
