"""What is built when: by content, once, and never half. Layers are filled by stand-ins here."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from pathlib import Path

import pytest

from sglang_ops.errors import OpsError
from sglang_ops.lab.images import build, ensure_registry, is_cached, layers, oci, recipes
from sglang_ops.lab.images.layers import LayerRecipe, Log


class Builder:
    """Replaces what needs root and a network, and remembers what was filled."""

    def __init__(self) -> None:
        self.filled: list[str] = []
        self.failing: str | None = None
        self.version: dict[str, int] = {}

    def recipe(self, name: str) -> Callable[[], LayerRecipe]:
        def fill(tree: Path, log: Log) -> None:
            self.filled.append(name)
            if name == self.failing:
                raise OpsError(f"{name} failed")
            (tree / "usr/local").mkdir(parents=True)
            (tree / "usr/local" / name).write_text("content")

        return lambda: LayerRecipe(name, [self.version.get(name, 1)], fill)


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> Builder:
    builder = Builder()
    for function, name in (
        ("base", "base"),
        ("hub_client", "hub-client"),
        ("simulated", "simulator"),
        ("engine", "engine"),
        ("benchmark", "benchmark"),
    ):
        monkeypatch.setattr(layers, function, builder.recipe(name))
    monkeypatch.setattr(build, "_compile", lambda *_: None)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    return builder


def silent(_: str) -> None:
    """A log for nobody."""


def images(registry: Path) -> dict[str, list[str]]:
    """The images of a registry, and the files in their layers."""
    root = registry / "docker/registry/v2"
    found = {}
    for link in root.glob("repositories/*/_manifests/tags/*/current/link"):
        manifest = json.loads(blob(root, link.read_text()))
        found[f"{link.parents[4].name}:{link.parents[1].name}"] = [layer["digest"] for layer in manifest["layers"]]
    return found


def blob(root: Path, digest: str) -> bytes:
    name = digest.removeprefix("sha256:")
    return (root / "blobs/sha256" / name[:2] / name / "data").read_bytes()


def test_the_simulator_alone(builder: Builder, tmp_path: Path) -> None:
    assert not is_cached("simulator", tmp_path)
    registry = ensure_registry("simulator", tmp_path, silent)
    assert sorted(builder.filled) == ["base", "hub-client", "simulator"]
    assert {name: len(layers) for name, layers in images(registry).items()} == {"sglang-simulator:v0.5.23": 3}
    assert is_cached("simulator", tmp_path)
    assert not is_cached("real", tmp_path)


def test_the_engine_comes_on_top_and_nothing_is_built_twice(builder: Builder, tmp_path: Path) -> None:
    simulator = images(ensure_registry("simulator", tmp_path, silent))["sglang-simulator:v0.5.23"]
    builder.filled.clear()
    registry = ensure_registry("real", tmp_path, silent)
    assert sorted(builder.filled) == ["benchmark", "engine"]
    found = images(registry)
    assert found["sglang-simulator:v0.5.23"] == simulator
    assert found["sglang:v0.5.23-cpu"][0] == simulator[0]
    assert len(found["sglang:v0.5.23-cpu"]) == 3
    builder.filled.clear()
    assert ensure_registry("real", tmp_path, silent) == registry
    assert not builder.filled


def test_a_changed_layer_gives_a_new_registry_and_leaves_the_old_one(builder: Builder, tmp_path: Path) -> None:
    old = ensure_registry("simulator", tmp_path, silent)
    before = images(old)
    builder.filled.clear()
    builder.version["simulator"] = 2
    new = ensure_registry("simulator", tmp_path, silent)
    assert (builder.filled, new != old, images(old)) == (["simulator"], True, before)


def test_a_failed_build_leaves_nothing_half_and_the_next_goes_on(builder: Builder, tmp_path: Path) -> None:
    builder.failing = "hub-client"
    with pytest.raises(OpsError, match="hub-client failed"):
        ensure_registry("simulator", tmp_path, silent)
    assert not is_cached("simulator", tmp_path)
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["layers"]
    builder.failing = None
    assert images(ensure_registry("simulator", tmp_path, silent))


def test_what_a_killed_build_left_is_removed(builder: Builder, tmp_path: Path) -> None:
    (tmp_path / "images/.build/base").mkdir(parents=True)
    (tmp_path / "images/.build/base/half").write_text("half")
    ensure_registry("simulator", tmp_path, silent)
    assert not (tmp_path / "images/.build").exists()


def test_the_engine_needs_x86(builder: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(OpsError, match="this machine is aarch64"):
        ensure_registry("real", tmp_path, silent)
    assert ensure_registry("simulator", tmp_path, silent).is_dir()


def test_keys_follow_the_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    made = [layers.base(), layers.hub_client(), layers.simulated(), layers.engine()]
    keys = [recipe.key for recipe in made]
    assert len(set(keys)) == 4
    assert [recipe.key for recipe in (layers.base(), layers.hub_client(), layers.simulated(), layers.engine())] == keys
    monkeypatch.setattr(recipes, "ENGINE_WITHOUT", ())
    assert layers.engine().key != keys[3]
    assert layers.hub_client().key == keys[1]


def test_the_simulators_layer_has_all_it_needs(tmp_path: Path) -> None:
    layers.simulated().fill(tmp_path, silent)
    site = tmp_path / recipes.SITE
    assert (site / "sglang_ops/simulator/arguments.py").is_file()
    assert (site / f"sglang_ops/catalog/{recipes.SGLANG_VERSION}.json").is_file()
    assert "import main" in (site / "sglang/launch_server.py").read_text()
    program = tmp_path / "usr/local/bin/sglang"
    assert program.read_text().startswith("#!/usr/bin/python3\n")
    assert program.stat().st_mode & 0o111


def test_the_base_is_pruned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bootstrap(suite: str, packages: tuple[str, ...], tree: Path, *, log: Log) -> None:
        for name in ("usr/bin/perl5", "usr/bin/python3", "etc/apt/apt.conf", "usr/lib/x/perl/a.so", "var/cache/apt/b"):
            path = tree / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("")
        (tree / "usr/bin/apt").symlink_to("python3")

    monkeypatch.setattr(layers.debian, "bootstrap", bootstrap)
    layers.base().fill(tmp_path / "tree", silent)
    left = {str(path.relative_to(tmp_path / "tree")) for path in (tmp_path / "tree").rglob("*") if not path.is_dir()}
    assert left == {"usr/bin/python3"}


def test_the_hub_client_is_pinned_with_the_engine() -> None:
    pins = recipes.engine_pins()
    client = recipes.engine_pins(only=recipes.HUB_CLIENT)
    assert len(client) == len(recipes.HUB_CLIENT)
    assert set(client) < set(pins)
    assert f"sglang=={recipes.SGLANG_VERSION}" in pins
    assert all(pin.count("==") == 1 for pin in pins)


def test_layers_are_remembered_by_their_key(builder: Builder, tmp_path: Path) -> None:
    ensure_registry("simulator", tmp_path, silent)
    store = tmp_path / "images/layers" / layers.base().key
    layer = oci.layer_from((store / "layer.json").read_text(), store / "layer.tar")
    assert layer.size == (store / "layer.tar").stat().st_size
