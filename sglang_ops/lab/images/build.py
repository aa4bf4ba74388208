"""The content of the lab's registry: which images it holds, and how their layers come to be."""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sglang_ops.errors import OpsError
from sglang_ops.lab.images import layers, oci, recipes
from sglang_ops.lab.images.layers import LayerRecipe
from sglang_ops.lab.locks import locked

Log = Callable[[str], None]

_GUEST_LAYER = "layer"  # where another layer lies in the base tree while Debian's Python compiles it


def is_cached(server: str, cache: Path) -> bool:
    """Whether the images for `server` ("real", "simulator") are ready in the cache."""
    return _registry(server, cache).is_dir()


def ensure_registry(server: str, cache: Path, log: Log) -> Path:
    """The storage of a registry that holds the lab's images, built where it is missing and never half built.

    The simulator's image is always there, the engine's for server "real". Needs root, mmdebstrap, pip and
    strip; the engine takes about two minutes and, while it is built, 4 GB of disk. Raises OpsError.
    """
    if server == "real" and platform.machine() != "x86_64":
        raise OpsError(
            f"The lab's engine image is made for x86_64; this machine is {platform.machine()}.",
            fix="Use --server simulator.",
        )
    registry = _registry(server, cache)
    registry.parent.mkdir(parents=True, exist_ok=True)
    with locked(registry.parent):
        if not registry.is_dir():
            started = time.monotonic()
            _build(server, registry, log)
            log(f"images built in {time.monotonic() - started:.0f} s")
    return registry


def _registry(server: str, cache: Path) -> Path:
    """The registry's storage; its name follows from all that is in it, so it never changes."""
    content = [
        [recipe.key for recipe in _layers(server)],
        recipes.ENVIRONMENT,
        recipes.ENGINE_LABELS,
        recipes.SIMULATOR_LABELS,
    ]
    key = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]
    return cache / "images" / f"registry-{server}-{key}"


def _layers(server: str) -> list[LayerRecipe]:
    made = [layers.base(), layers.hub_client(), layers.simulated()]
    return [*made, layers.engine()] if server == "real" else made


def _images(server: str, made: Mapping[str, oci.Layer]) -> list[oci.Image]:
    """The images of a registry, from its layers by name."""
    simulator = oci.Image(
        repository=recipes.SIMULATOR_REPOSITORY,
        tag=recipes.SIMULATOR_TAG,
        layers=(made["base"], made["hub-client"], made["simulator"]),
        environment=recipes.ENVIRONMENT,
        labels=recipes.SIMULATOR_LABELS,
    )
    if server != "real":
        return [simulator]
    engine = oci.Image(
        repository=recipes.ENGINE_REPOSITORY,
        tag=recipes.ENGINE_TAG,
        layers=(made["base"], made["engine"]),
        environment=recipes.ENVIRONMENT,
        labels=recipes.ENGINE_LABELS,
    )
    return [simulator, engine]


def _build(server: str, registry: Path, log: Log) -> None:
    workplace = registry.parent / ".build"
    if workplace.exists():  # of a build that was killed
        shutil.rmtree(workplace)
    workplace.mkdir()
    try:
        made = _ensure_layers(_layers(server), registry.parent / "layers", workplace, log)
        for image in _images(server, made):
            oci.add_image(workplace / "registry", image)
            log(f"image {image.repository}:{image.tag}, {sum(layer.size for layer in image.layers) / 1e6:.0f} MB")
        (workplace / "registry").rename(registry)
    finally:
        shutil.rmtree(workplace)


def _ensure_layers(wanted: Sequence[LayerRecipe], store: Path, workplace: Path, log: Log) -> dict[str, oci.Layer]:
    """The layers by name, from the store where they are there; `wanted` begins with the base."""
    store.mkdir(exist_ok=True)
    missing = [recipe for recipe in wanted if not (store / recipe.key).is_dir()]
    # Filling waits for the network and unpacking for the disk, so all at once; compiling takes all cores.
    with concurrent.futures.ThreadPoolExecutor() as pool:
        for filled in [pool.submit(recipe.fill, workplace / recipe.name, log) for recipe in missing]:
            filled.result()
    root = workplace / wanted[0].name
    for recipe in missing:
        if recipe is wanted[0]:
            _compile(root, "/usr/lib/python3.11", "/usr/lib/python3")
            _store(recipe, root, store)
        else:
            if not root.is_dir():
                _unpack(_stored(wanted[0], store), root)
            tree = (workplace / recipe.name).rename(root / _GUEST_LAYER)
            _compile(root, f"/{_GUEST_LAYER}/{recipes.SITE}", "-s", f"/{_GUEST_LAYER}", "-p", "/")
            _store(recipe, tree, store)
            shutil.rmtree(tree)
    return {recipe.name: _stored(recipe, store) for recipe in wanted}


def _compile(root: Path, *arguments: str) -> None:
    """Compile Python in the tree `root` with the Python of that tree.

    The files say that they need no check against their sources, whose times differ in every container:
    most of the engine's start is imports. What is no valid Python (tests, templates) stays uncompiled.
    """
    command = ["python3", "-m", "compileall", "-qq", "-j0", "--invalidation-mode", "unchecked-hash", *arguments]
    (root / "dev" / "shm").mkdir(exist_ok=True)  # for the locks of the compiling processes
    done = subprocess.run(["chroot", str(root), *command], capture_output=True, text=True, check=False)
    shutil.rmtree(root / "dev" / "shm")
    if done.returncode not in (0, 1):
        raise OpsError(f"The image's Python could not compile: {done.stderr.strip()}")


def _store(recipe: LayerRecipe, tree: Path, store: Path) -> None:
    partial = tree.parent / f"{recipe.key}.layer"
    partial.mkdir()
    layer = oci.write_layer(tree, partial / "layer.tar")
    (partial / "layer.json").write_text(oci.layer_description(layer))
    partial.rename(store / recipe.key)


def _stored(recipe: LayerRecipe, store: Path) -> oci.Layer:
    directory = store / recipe.key
    return oci.layer_from((directory / "layer.json").read_text(), directory / "layer.tar")


def _unpack(layer: oci.Layer, target: Path) -> None:
    target.mkdir()
    subprocess.run(["tar", "--extract", "--numeric-owner", "--directory", target, "--file", layer.path], check=True)
