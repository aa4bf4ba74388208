"""The content of the lab's registry: which images it holds, and how their layers come to be."""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import os
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


def is_cached(server: str, cache: Path, *, gateway: bool = False) -> bool:
    """Whether the images for `server` ("real", "simulator") are ready in the cache."""
    return _registry(server, cache, gateway).is_dir()


def ensure_registry(server: str, cache: Path, log: Log, *, gateway: bool = False) -> Path:
    """The storage of a registry that holds the lab's images, built where it is missing and never half built.

    The simulator's image is always there, the engine's for server "real", the router's with `gateway`. Needs
    root, mmdebstrap, pip and strip; the engine takes about two minutes and, while it is built, 4 GB of disk. Raises
    OpsError.
    """
    if server == "real" and platform.machine() != "x86_64":
        raise OpsError(
            f"The lab's engine image is made for x86_64; this machine is {platform.machine()}.",
            fix="Use --server simulator.",
        )
    registry = _registry(server, cache, gateway)
    registry.parent.mkdir(parents=True, exist_ok=True)
    with locked(registry.parent):
        if not registry.is_dir():
            started = time.monotonic()
            _build(server, registry, log, gateway)
            log(f"images built in {time.monotonic() - started:.0f} s")
    return registry


def _registry(server: str, cache: Path, gateway: bool) -> Path:
    """The registry's storage; its name follows from all that is in it, so it never changes."""
    content = [
        [recipe.key for recipe in _layers(server, gateway)],
        recipes.ENVIRONMENT,
        recipes.ENGINE_LABELS,
        recipes.SIMULATOR_LABELS,
        *([recipes.GATEWAY_LABELS] if gateway else []),
    ]
    key = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]
    return cache / "images" / f"registry-{server}{'-gateway' if gateway else ''}-{key}"


def _layers(server: str, gateway: bool) -> list[LayerRecipe]:
    made = [layers.base(), layers.hub_client(), layers.simulated()]
    made += [layers.engine(), layers.benchmark()] if server == "real" else []
    return [*made, layers.gateway()] if gateway else made


def _images(made: Mapping[str, oci.Layer]) -> list[oci.Image]:
    """The images of a registry, from its layers by name."""
    simulator = oci.Image(
        repository=recipes.SIMULATOR_REPOSITORY,
        tag=recipes.SIMULATOR_TAG,
        layers=(made["base"], made["hub-client"], made["simulator"]),
        environment=recipes.ENVIRONMENT,
        labels=recipes.SIMULATOR_LABELS,
    )
    engine = (made["base"], made["engine"], made["benchmark"]) if "engine" in made else ()
    gateway = (made["base"], made["gateway"]) if "gateway" in made else ()
    others = [
        (recipes.ENGINE_REPOSITORY, recipes.ENGINE_TAG, engine, recipes.ENGINE_LABELS),
        (recipes.GATEWAY_REPOSITORY, recipes.GATEWAY_TAG, gateway, recipes.GATEWAY_LABELS),
    ]
    return [simulator] + [
        oci.Image(repository, tag, of, recipes.ENVIRONMENT, labels) for repository, tag, of, labels in others if of
    ]


def _build(server: str, registry: Path, log: Log, gateway: bool) -> None:
    workplace = registry.parent / ".build"
    if workplace.exists():  # of a build that was killed
        shutil.rmtree(workplace)
    workplace.mkdir()
    try:
        made = ensure_layers(_layers(server, gateway), registry.parent / "layers", workplace, log)
        for image in _images(made):
            oci.add_image(workplace / "registry", image)
            log(f"image {image.repository}:{image.tag}, {sum(layer.size for layer in image.layers) / 1e6:.0f} MB")
        (workplace / "registry").rename(registry)
    finally:
        shutil.rmtree(workplace)


def ensure_layers(wanted: Sequence[LayerRecipe], store: Path, workplace: Path, log: Log) -> dict[str, oci.Layer]:
    """The layers by name, from the store where they are there; `wanted` begins with the base."""
    store.mkdir(exist_ok=True)
    missing = [recipe for recipe in wanted if not (store / recipe.key).is_dir()]
    # Filling waits for the network and unpacking for the disk, so all at once; compiling takes all cores.
    with concurrent.futures.ThreadPoolExecutor() as pool:
        for filled in [pool.submit(recipe.fill, workplace / recipe.name, log) for recipe in missing]:
            filled.result()
    root = workplace / wanted[0].name
    for recipe in missing:
        log(f"{recipe.name}: compiling and packing")
        if recipe is wanted[0]:
            _compile(recipe, root, "/usr/lib/python3", "/usr/lib/python3.11")
            _store(recipe, root, store)
        else:
            if not root.is_dir():
                _unpack(_stored(wanted[0], store), root)
            tree = workplace / recipe.name
            _swap(tree / "usr/local", root / "usr/local")
            _compile(recipe, root, "/usr/local")
            _swap(tree / "usr/local", root / "usr/local")
            _store(recipe, tree, store)
    return {recipe.name: _stored(recipe, store) for recipe in wanted}


def _compile(recipe: LayerRecipe, root: Path, *directories: str) -> None:
    """Compile Python in the tree `root`, with the Python of that tree.

    Sources get the time that layers give to every file, so that what is compiled here is valid in containers.
    For an engine this is also the proof that it can be imported.
    """
    for source in (path for directory in directories for path in root.joinpath(directory[1:]).rglob("*.py")):
        os.utime(source, (oci.EPOCH, oci.EPOCH))
    # What is no valid Python (templates) stays uncompiled, and that is no failure.
    code = (
        recipe.imports or f"import compileall; [compileall.compile_dir(d, quiet=2, workers=0) for d in {directories}]"
    )
    enter = 'mount --bind /dev "$0/dev"; mount -t proc proc "$0/proc"; exec chroot "$0" "$@"'
    environment = [f"{name}={value}" for name, value in recipes.ENVIRONMENT.items()]
    python = ["env", "-i", *environment, "python3", "-c", code]
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", enter, str(root), *python]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OpsError(f"The Python of layer {recipe.name} failed: {' | '.join(done.stderr.splitlines()[-3:])}")


def _swap(one: Path, other: Path) -> None:
    aside = other.with_name(f".{other.name}")
    other.rename(aside)
    one.rename(other)
    aside.rename(one)


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
