"""The evaluation harness's image for a lab: made when an evaluation needs it, and pushed into the lab's registry.

It is not part of what every lab has, because its download and its unpacking take as long as a simulator's whole lab.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path

from sglang_ops.errors import OpsError
from sglang_ops.lab import questions
from sglang_ops.lab.images import build, layers, oci, recipes, wheels
from sglang_ops.lab.images.layers import LayerRecipe
from sglang_ops.lab.locks import locked
from sglang_ops.lab.settings import Plan, cache_root

Log = Callable[[str], None]

REPOSITORY, TAG = "lm-eval", "0.4.13"
# Packages that are on the index as sources only; all are pure Python.
_SOURCES = ("langdetect",)
# What scoring generated text does not open: tests, headers, tasks of other kinds, Arrow's services.
_WITHOUT = (
    "*.a", "*.pxd", "*.pyi", "*.pyx", "*/tests/*", "*/include/*",
    "lm_eval/tasks/[!agims]*/*", "lm_eval/tasks/g[!ps]*/*", "lm_eval/tasks/i[!f]*/*", "lm_eval/tasks/a[!i]*/*",
    "lm_eval/tasks/m[!i]*/*", "lm_eval/tasks/s*/*",
    "pyarrow/*flight*", "pyarrow/*gandiva*", "pyarrow/src/*", "pyarrow/libarrow_python.so", "pyarrow/*.so.*.*.*",
)  # fmt: skip
_IMPORTS = """
import lm_eval, lm_eval.evaluator, lm_eval.models.openai_completions, lm_eval.tasks.ifeval.utils
import datasets, pandas, pyarrow.csv, pyarrow.dataset, pyarrow.parquet, sacrebleu, scipy.stats, sklearn.metrics
"""
_LABELS: Mapping[str, str] = {
    "org.opencontainers.image.title": "lm-evaluation-harness",
    "org.opencontainers.image.description": "lm-evaluation-harness as released, trimmed for the lab to some tasks",
    "org.opencontainers.image.version": TAG,
}


def provide(plan: Plan, log: Log) -> str:
    """See that the lab's registry has the image; its reference. Raises OpsError."""
    ref = f"{plan.registry_address}/{REPOSITORY}:{TAG}"
    registry = f"http://{ref.partition('/')[0]}/v2/{REPOSITORY}"
    if _ask("HEAD", f"{registry}/manifests/{TAG}") == 200:
        return ref
    made = _layers(log)
    image = oci.Image(REPOSITORY, TAG, made, recipes.ENVIRONMENT, _LABELS)
    config, manifest = oci.described(image)
    for layer in made:
        log(f"pushing {layer.size / 1e6:.0f} MB")
        _push(registry, layer.digest, layer.path)
    with tempfile.NamedTemporaryFile() as file:
        file.write(config)
        file.flush()
        _push(registry, f"sha256:{hashlib.sha256(config).hexdigest()}", Path(file.name))
    status = _ask("PUT", f"{registry}/manifests/{TAG}", manifest, {"Content-Type": oci.MANIFEST_TYPE})
    if status != 201:
        raise OpsError(f"The lab's registry did not take {REPOSITORY}:{TAG}: status {status}.")
    return ref


def _layers(log: Log) -> tuple[oci.Layer, ...]:
    """Debian's Python and, above it, the harness; from the cache where an earlier lab made them."""
    store = cache_root() / "images"
    store.mkdir(parents=True, exist_ok=True)
    recipe = [layers.base(), _harness()]
    with locked(store):
        workplace = store / ".build"
        if workplace.exists():  # of a build that was killed
            shutil.rmtree(workplace)
        workplace.mkdir()
        try:
            made = build.ensure_layers(recipe, store / "layers", workplace, log)
        finally:
            shutil.rmtree(workplace)
    return made["base"], made["harness"]


def _harness() -> LayerRecipe:
    text = (resources.files("sglang_ops.lab.images") / "harness-pins.txt").read_text("utf-8")
    pins = [line for line in text.splitlines() if line and not line.startswith("#")]

    def fill(tree: Path, log: Log) -> None:
        log(f"harness: {len(pins)} packages, 0.2 GB to download")
        with tempfile.TemporaryDirectory(dir=tree.parent) as place:
            downloads = Path(place)
            built = [pin for pin in pins if pin.partition("==")[0] in _SOURCES]
            wheels.fetch([pin for pin in pins if pin not in built], downloads)
            _build(built, downloads)
            wheels.unpack(downloads, tree / recipes.SITE, without=_WITHOUT)
        for name, text in questions.SENTENCES.items():
            path = tree / questions.IN_IMAGE.lstrip("/") / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    inputs = [pins, _WITHOUT, _IMPORTS, questions.IN_IMAGE, questions.SENTENCES]
    return LayerRecipe("harness", inputs, fill, _IMPORTS)


def _build(pins: list[str], target: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(target), *pins]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OpsError(f"pip could not build {' '.join(pins)}: {' | '.join(done.stderr.splitlines()[-2:])}")


def _push(registry: str, digest: str, path: Path) -> None:
    """One blob, unless it is there. The distribution API: begin an upload, then end it with all of the data."""
    if _ask("HEAD", f"{registry}/blobs/{digest}") == 200:
        return
    begin = urllib.request.Request(f"{registry}/blobs/uploads/", method="POST")  # noqa: S310 - the lab's registry
    with urllib.request.urlopen(begin) as answer:  # noqa: S310
        place = answer.headers["Location"]
    with path.open("rb") as data:
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(path.stat().st_size)}
        end = urllib.request.Request(f"{place}&digest={digest}", data=data, headers=headers, method="PUT")  # noqa: S310
        with urllib.request.urlopen(end):  # noqa: S310
            pass


def _ask(method: str, url: str, data: bytes | None = None, headers: Mapping[str, str] | None = None) -> int:
    request = urllib.request.Request(url, data=data, headers=dict(headers or {}), method=method)  # noqa: S310
    request.add_header("Accept", oci.MANIFEST_TYPE)
    try:
        with urllib.request.urlopen(request) as answer:  # noqa: S310
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
