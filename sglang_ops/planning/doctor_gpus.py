"""GPUs and their driver. Each check is pure and says nothing of a host that is fit."""

from __future__ import annotations

import re

from sglang_ops.planning.doctor_facts import Examined, Finding, listed, numbers

# First driver branch that runs images of a CUDA major version (NVIDIA's CUDA compatibility guide).
DRIVER_FOR_CUDA = {11: 450, 12: 525, 13: 580}
# Least compute capability of GPUs that a CUDA major version still knows: 13 left Maxwell, Pascal and Volta behind.
CAPABILITY_FOR_CUDA = {12: (5, 0), 13: (7, 5)}
DEFAULT_CUDA = 13  # of SGLang's image tags that name none
_NO_CUDA = re.compile(r"cpu|rocm|xeon|npu|xpu|hpu")
_CUDA_TAG = re.compile(r"(?:^|-)cu(\d\d)\d?(?:-|$)")
# Xids that tell of hardware or firmware, not of a program's mistake (NVIDIA's Xid catalogue).
_LOST, _HARDWARE = (79,), (48, 62, 64, 74, 92, 95, 119, 120, 140)
_XID = re.compile(r"Xid \(([^)]*)\): (\d+)")

_INSTALL = "Install NVIDIA's driver, branch 580 or newer (docs.nvidia.com/datacenter/tesla/driver-installation-guide)"
_RELOAD = "sudo reboot (or stop every GPU process and reload: sudo rmmod nvidia_uvm nvidia_drm nvidia_modeset nvidia)"
_FLAVOUR = (
    "If lspci -nn -d 10de: shows GPUs, the modules have the wrong flavour (modinfo -F license nvidia): "
    "Turing and newer take the open ones, older GPUs the proprietary ones of branch 580"
)
# What nvidia-smi says, as it is said, and what to do about it.
_SAYINGS = (
    ("GPU is lost", "gpu-lost", "sudo reboot; if it happens again, the GPU, its seat or its power is broken"),
    ("version mismatch", "driver-mismatch", _RELOAD + "; then hold the driver's packages"),
    ("No devices were found", "gpus", _FLAVOUR),
    (
        "couldn't communicate with the NVIDIA driver",
        "driver",
        "sudo modprobe nvidia; if that fails: dkms status, and sudo dmesg | grep NVRM",
    ),
)


def driver(seen: Examined) -> Finding | None:
    """nvidia-smi answers. Every other check of GPUs needs that."""
    error, nvidia = seen.facts.gpu_error, seen.machine.nvidia
    if error is None:
        return None
    count = len(nvidia.pci)
    if error.endswith("is not installed"):
        if not count:
            detail = "no NVIDIA GPU is on the PCI bus, and nvidia-smi is not installed"
            return Finding("gpus", detail, "Take the host out of the inventory, or give it a GPU (lspci -nn -d 10de:)")
        detail = f"{count} NVIDIA GPU{'s are' if count > 1 else ' is'} on the PCI bus, and no driver is installed"
        return Finding("driver", detail, _INSTALL)
    for saying, check, remedy in _SAYINGS:
        if saying in error:
            versions = nvidia.driver
            known = check == "driver-mismatch" and versions.module and versions.library
            more = f" (kernel module {versions.module}, library {versions.library})" if known else ""
            return Finding(check, error + more, remedy)
    return Finding("driver", error, "See sudo dmesg | grep NVRM, and nvidia-smi on the host")


def off_the_bus(seen: Examined) -> Finding | None:
    """GPUs on the PCI bus that nvidia-smi does not list. Those handed to virtual machines are none of ours."""
    present = [device for device in seen.machine.nvidia.pci if device.driver != "vfio-pci"]
    if not seen.facts.gpus or len(present) <= len(seen.facts.gpus):
        return None
    seen_by_driver = {_short(health.bus_id) for health in seen.machine.nvidia.health.values()}
    lost = [device.address for device in present if _short(device.address) not in seen_by_driver]
    detail = f"{len(present)} GPUs are on the PCI bus, nvidia-smi lists {len(seen.facts.gpus)}"
    which = f" (not {listed(lost)})" if lost and seen_by_driver else ""
    remedy = "sudo dmesg | grep NVRM says why; sudo reboot; if it stays away, the GPU is broken or not supported"
    return Finding("gpu-lost", detail + which, remedy)


def _short(address: str) -> str:
    """`00000000:1B:00.0` and `0000:1b:00.0` are the same place."""
    return address.lower()[-12:]


def driver_for_image(seen: Examined) -> Finding | None:
    """The driver runs the CUDA of every image."""
    if not seen.driver:
        return None
    have = numbers(seen.driver)[0]
    for image in dict.fromkeys(deployment.image for deployment in seen.deployments):
        cuda = cuda_of(image)
        if cuda and have < DRIVER_FOR_CUDA.get(cuda, 0):
            needs = DRIVER_FOR_CUDA[cuda]
            detail = f"driver {seen.driver} is too old for CUDA {cuda} of {image}, which needs {needs} or newer"
            older = f", or deploy a -cu129 image (driver {DRIVER_FOR_CUDA[12]} or newer)" if cuda > 12 else ""
            return Finding("driver-version", detail, f"Install driver {needs} or newer{older}.")
    if not seen.deployments and have < DRIVER_FOR_CUDA[DEFAULT_CUDA]:
        detail = f"driver {seen.driver} runs no CUDA {DEFAULT_CUDA}, which SGLang's default images have"
        remedy = f"Install driver {DRIVER_FOR_CUDA[DEFAULT_CUDA]} or newer, or deploy -cu129 images."
        return Finding("driver-version", detail, remedy, warning=True)
    return None


def too_old(seen: Examined) -> Finding | None:
    """Every GPU is known to the CUDA of every image."""
    known = {number: gpu.capability for number, gpu in seen.machine.nvidia.health.items() if numbers(gpu.capability)}
    for image in dict.fromkeys(deployment.image for deployment in seen.deployments):
        least = CAPABILITY_FOR_CUDA.get(cuda_of(image) or 0, ())
        old = [number for number, capability in known.items() if numbers(capability) < least]
        if old:
            detail = f"GPU {listed(old)} has compute capability {known[old[0]]}"
            why = f"which CUDA {cuda_of(image)} of {image} does not support"
            remedy = "Deploy a -cu129 image, or name other GPUs in CUDA_VISIBLE_DEVICES."
            return Finding("gpus", f"{detail}, {why}", remedy)
    return None


def mixed(seen: Examined) -> Finding | None:
    """Tensor parallelism goes at the pace of the slowest, in the memory of the smallest."""
    kinds = [f"{gpu.name} ({gpu.memory_total_mib // 1024} GiB)" for gpu in seen.facts.gpus]
    if len(set(kinds)) < 2:
        return None
    counted = listed(f"{kinds.count(kind)} × {kind}" for kind in dict.fromkeys(kinds))
    remedy = "Give a deployment GPUs of one kind with CUDA_VISIBLE_DEVICES in env_vars."
    return Finding("gpus", f"the GPUs are not alike: {counted}", remedy, warning=True)


def cuda_of(image: str) -> int | None:
    """The CUDA major version of an image by its tag; None where the tag cannot tell."""
    name, _, tag = image.partition("@")[0].rpartition(":")
    named = _CUDA_TAG.search(tag)
    if named:
        return int(named.group(1))
    ours = name.rpartition("/")[2].startswith("sglang")
    return DEFAULT_CUDA if ours and not _NO_CUDA.search(tag) else None


def fabric_manager(seen: Examined) -> Finding | None:
    """Where there are NVSwitches no GPU initialises without it, and it must be the driver's very version."""
    nvidia = seen.machine.nvidia
    waiting = [number for number, health in nvidia.health.items() if health.fabric in ("Not Started", "In Progress")]
    if not seen.driver or not (nvidia.switches or waiting):
        return None
    manager, install = nvidia.fabric_manager, f"Install nvidia-fabricmanager {seen.driver}, the driver's very version"
    start = "sudo systemctl enable --now nvidia-fabricmanager"
    where = f"{len(nvidia.switches)} NVSwitches" if nvidia.switches else f"the NVLink fabric of GPU {listed(waiting)}"
    if not manager.version:
        return Finding("fabric-manager", f"{where}, and no fabric manager is installed", f"{install}, and: {start}")
    if manager.version != seen.driver:
        detail = f"the fabric manager is {manager.version}, the driver {seen.driver}: they must be equal"
        return Finding("fabric-manager", detail, f"{install}, and: sudo systemctl restart nvidia-fabricmanager")
    if manager.state != "active":
        return Finding("fabric-manager", f"{where}, and the fabric manager is {manager.state}", start)
    return None


def memory_errors(seen: Examined) -> Finding | None:
    health = seen.machine.nvidia.health
    failed = [number for number, gpu in health.items() if gpu.remap_failed == "Yes"]
    if failed:
        detail = f"GPU {listed(failed)} has a defect in memory that could not be mapped out"
        return Finding("ecc", detail, "Have the GPU replaced; until then name the others in CUDA_VISIBLE_DEVICES.")
    pending = [number for number, gpu in health.items() if gpu.remap_pending == "Yes"]
    broken = [number for number, gpu in health.items() if gpu.ecc_uncorrected.isdecimal() and int(gpu.ecc_uncorrected)]
    if not pending and not broken:
        return None
    parts = [f"GPU {listed(broken)} had uncorrectable memory errors"] if broken else []
    parts += [f"GPU {listed(pending)} waits for a reset to map defective memory out"] if pending else []
    which = ",".join(map(str, sorted({*broken, *pending})))
    remedy = f"Stop what runs there, then sudo nvidia-smi --gpu-reset -i {which}. If it returns, replace the GPU."
    return Finding("ecc", " and ".join(parts), remedy)


def kernel_log(seen: Examined) -> Finding | None:
    """What the driver wrote since the machine booted. Mistakes of programs are not the host's."""
    told: dict[int, str] = {}
    lines = [line for line in seen.machine.nvidia.log if "fallen off the bus" in line]
    for line in seen.machine.nvidia.log:
        for place, number in _XID.findall(line):
            told[int(number)] = place
    if lines or any(number in told for number in _LOST):
        detail = f"the kernel log tells that a GPU fell off the bus: {lines[-1] if lines else _xids(told)}"
        return Finding("xid", detail, "sudo reboot; if it happens again, the GPU, its seat or its power is broken")
    hardware = {number: place for number, place in told.items() if number in _HARDWARE}
    if not hardware:
        return None
    detail = f"the kernel log tells of faults of GPUs since the last boot: {_xids(hardware)}"
    return Finding(
        "xid", detail, "sudo dmesg | grep Xid; docs.nvidia.com/deploy/xid-errors says what each is", warning=True
    )


def _xids(told: dict[int, str]) -> str:
    return listed(f"Xid {number} ({place})" for number, place in sorted(told.items()))


def persistence(seen: Examined) -> Finding | None:
    off = [number for number, gpu in seen.machine.nvidia.health.items() if gpu.persistence == "Disabled"]
    if not off:
        return None
    detail = f"persistence mode is off on GPU {listed(off)}: the driver unloads its state whenever nothing uses it"
    return Finding("persistence", detail, "sudo systemctl enable --now nvidia-persistenced", warning=True)


CHECKS = (
    driver,
    off_the_bus,
    driver_for_image,
    too_old,
    mixed,
    fabric_manager,
    memory_errors,
    kernel_log,
    persistence,
)
