"""How each layer of the lab's images is filled: Debian, the hub's client, the simulator, the engine."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sglang_ops import catalog, simulator
from sglang_ops.errors import OpsError
from sglang_ops.lab import debian
from sglang_ops.lab.images import recipes, wheels

Log = Callable[[str], None]
Fill = Callable[[Path, Log], None]

_PROCEDURE = 3  # raised when this package comes to make something else of the same inputs
_SIMULATOR_SOURCE = Path(simulator.__file__).parent
_CATALOGUE = Path(catalog.__file__).parent


@dataclass(frozen=True)
class LayerRecipe:
    """A layer to be: what decides its content, and what fills a directory with it.

    `imports` is Python that imports what is worth compiling; without it, all is compiled.
    """

    name: str
    inputs: Sequence[object]
    fill: Fill
    imports: str = ""

    @property
    def key(self) -> str:
        """A short hash of the inputs: the same key is the same content."""
        return hashlib.sha256(json.dumps([_PROCEDURE, self.name, self.inputs]).encode()).hexdigest()[:12]


def base() -> LayerRecipe:
    """Debian with its Python, and no way to install more."""
    inputs = [
        recipes.SUITE,
        recipes.BASE_PACKAGES,
        recipes.BASE_WITHOUT,
        os.environ.get(debian.MIRROR_VARIABLE),
        debian.authorities_digest(),
    ]
    return LayerRecipe("base", inputs, _fill_base)


def hub_client() -> LayerRecipe:
    """The program `hf`."""
    pins = recipes.engine_pins(only=recipes.HUB_CLIENT)

    def fill(tree: Path, log: Log) -> None:
        log(f"hub client: {len(pins)} packages")
        _install(pins, tree, without=recipes.HUB_CLIENT_WITHOUT)
        _write(recipes.HUB_CLIENT_FILES, tree)

    return LayerRecipe("hub-client", [pins, recipes.HUB_CLIENT_WITHOUT, recipes.HUB_CLIENT_FILES], fill)


def simulated() -> LayerRecipe:
    """The simulator, under the engine's names."""
    listed = _CATALOGUE / f"{simulator.SGLANG_VERSION}.json"
    sources = [*_SIMULATOR_SOURCE.glob("*.py"), *_CATALOGUE.glob("*.py"), listed]

    def fill(tree: Path, log: Log) -> None:
        log("simulator: copying")
        for source in sources:
            target = tree / recipes.SITE / "sglang_ops" / source.parent.name / source.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        _write(recipes.SIMULATOR_FILES, tree)

    digests = sorted([source.name, hashlib.sha256(source.read_bytes()).hexdigest()] for source in sources)
    return LayerRecipe("simulator", [digests, recipes.SIMULATOR_FILES], fill)


def engine() -> LayerRecipe:
    """SGLang itself with all it needs, the hub's client among it."""
    pins = recipes.engine_pins()

    def fill(tree: Path, log: Log) -> None:
        log(f"engine: {len(pins)} packages, 0.5 GB to download")
        _install(pins, tree, without=recipes.ENGINE_WITHOUT)
        _strip(tree / recipes.SITE, recipes.ENGINE_STRIPPED)
        _write(recipes.ENGINE_FILES, tree)

    inputs = [
        pins,
        recipes.ENGINE_WITHOUT,
        recipes.ENGINE_STRIPPED,
        recipes.ENGINE_FILES,
        recipes.ENGINE_IMPORTS,
    ]
    return LayerRecipe("engine", inputs, fill, recipes.ENGINE_IMPORTS)


def gateway() -> LayerRecipe:
    """SGLang's router with all it needs."""
    pins = recipes.gateway_pins()

    def fill(tree: Path, log: Log) -> None:
        log(f"gateway: {len(pins)} packages, 35 MB to download")
        _install(pins, tree, without=recipes.GATEWAY_WITHOUT)

    return LayerRecipe("gateway", [pins, recipes.GATEWAY_WITHOUT], fill, "import sglang_router.launch_router")


def benchmark() -> LayerRecipe:
    """SGLang's serving benchmark, over the engine."""
    pins = recipes.engine_pins(only=("sglang",))

    def fill(tree: Path, log: Log) -> None:
        log("benchmark: one package, 40 MB to download")
        _install(pins, tree, only=recipes.BENCHMARK)
        _write(recipes.BENCHMARK_FILES, tree)

    return LayerRecipe("benchmark", [pins, recipes.BENCHMARK, recipes.BENCHMARK_FILES], fill)


def _fill_base(tree: Path, log: Log) -> None:
    debian.bootstrap(recipes.SUITE, recipes.BASE_PACKAGES, tree, log=log)
    for pattern in recipes.BASE_WITHOUT:
        for path in list(tree.glob(pattern)):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def _install(pins: Sequence[str], tree: Path, *, without: Sequence[str] = (), only: Sequence[str] = ("*",)) -> None:
    with tempfile.TemporaryDirectory(dir=tree.parent) as downloads:
        wheels.fetch(pins, Path(downloads))
        wheels.unpack(Path(downloads), tree / recipes.SITE, without=without, only=only)


def _strip(site: Path, patterns: Sequence[str]) -> None:
    libraries = [str(path) for pattern in patterns for path in site.glob(pattern)]
    done = subprocess.run(["strip", "--strip-unneeded", *libraries], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OpsError(f"strip failed: {done.stderr.strip()}")


def _write(files: Mapping[str, str], tree: Path) -> None:
    for name, content in files.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        path.chmod(0o755 if "/bin/" in name else 0o644)
