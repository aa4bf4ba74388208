"""The evaluation harnesses' images for a lab: made when an evaluation needs them, and pushed into the lab's registry.

They are not part of what every lab has, because their download and unpacking take as long as a simulator's whole lab.
NVIDIA's two are made of NVIDIA's own packages on the index, under the names of the launcher's task table.
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
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from sglang_ops.errors import OpsError
from sglang_ops.lab import questions
from sglang_ops.lab.images import build, layers, oci, recipes, wheels
from sglang_ops.lab.images.layers import LayerRecipe
from sglang_ops.lab.locks import locked
from sglang_ops.lab.settings import Plan, cache_root

Log = Callable[[str], None]

# Packages that are on the index as sources only; all are pure Python.
_SOURCES = ("langdetect", "pylatexenc", "rouge_score", "word2number")
# What scoring generated text does not open: tests, headers, Arrow's services, tasks of other kinds.
_GENERAL = ("*.a", "*.pxd", "*.pyi", "*.pyx", "*/tests/*", "*/include/*")
_ARROW = (
    "pyarrow/*flight*", "pyarrow/*gandiva*", "pyarrow/src/*", "pyarrow/libarrow_python.so", "pyarrow/*.so.*.*.*",
)  # fmt: skip
_TASKS = (
    "lm_eval/tasks/[!agims]*/*", "lm_eval/tasks/g[!ps]*/*", "lm_eval/tasks/i[!f]*/*", "lm_eval/tasks/a[!i]*/*",
    "lm_eval/tasks/m[!i]*/*", "lm_eval/tasks/s*/*",
)  # fmt: skip
_READERS = "import datasets, pandas, pyarrow.csv, pyarrow.dataset, pyarrow.parquet"
# As pip writes it: processes that a program spawns import it once more, and must not run it.
_PROGRAM = """\
#!/usr/bin/python3
import sys
from {module} import {name}
if __name__ == "__main__":
    sys.exit({name}())
"""
_EVALUATOR = {"nemo-evaluator": ("nemo_evaluator.core.entrypoint", "run_eval")}


@dataclass(frozen=True)
class Harness:
    """An image to be: its name, its packages, what of them is left out, its programs, and what is compiled."""

    repository: str
    tag: str
    layer: str
    pins: str
    without: tuple[str, ...]
    imports: str
    programs: Mapping[str, tuple[str, str]]
    title: str

    @property
    def labels(self) -> Mapping[str, str]:
        return {
            "org.opencontainers.image.title": self.title,
            "org.opencontainers.image.description": f"{self.title} as released, trimmed for the lab to some tasks",
            "org.opencontainers.image.version": self.tag,
        }


REPOSITORY, TAG = "lm-eval", "0.4.13"
UPSTREAM = Harness(
    REPOSITORY, TAG, "harness", "harness-pins.txt", (*_GENERAL, *_TASKS, *_ARROW),
    f"\nimport lm_eval, lm_eval.evaluator, lm_eval.models.openai_completions, lm_eval.tasks.ifeval.utils\n{_READERS}, "
    "sacrebleu, scipy.stats, sklearn.metrics\n",
    {}, "lm-evaluation-harness",
)  # fmt: skip
_NVIDIA_TAG = "26.03"
NVIDIA = (
    Harness(
        "nvidia/eval-factory/simple-evals", _NVIDIA_TAG, "nvidia-simple-evals", "nvidia-simple-evals-pins.txt",
        (*_GENERAL, *_ARROW), f"import nemo_evaluator.core.entrypoint, simple_evals.__main__\n{_READERS}",
        _EVALUATOR | {"simple_evals": ("simple_evals.__main__", "main")}, "NVIDIA's simple-evals",
    ),
    Harness(
        "nvidia/eval-factory/lm-evaluation-harness", _NVIDIA_TAG, "nvidia-lm-eval", "nvidia-lm-eval-pins.txt",
        (*_GENERAL, *_ARROW, *_TASKS, "transformers/models/*/modeling_*", "transformers/models/*/modular_*"),
        f"import nemo_evaluator.core.entrypoint, lm_eval.__main__, lm_eval.tasks.ifeval.utils\n{_READERS}\n"
        "import lm_eval.models.openai_completions, sacrebleu, scipy.stats, sklearn.metrics",
        _EVALUATOR | {"lm-eval": ("lm_eval.__main__", "cli_evaluate")}, "NVIDIA's lm-evaluation-harness",
    ),
)  # fmt: skip


def provide(plan: Plan, harness: Harness, log: Log) -> str:
    """See that the lab's registry has the image; its reference. Raises OpsError."""
    ref = f"{plan.registry_address}/{harness.repository}:{harness.tag}"
    registry = f"http://{ref.partition('/')[0]}/v2/{harness.repository}"
    if _ask("HEAD", f"{registry}/manifests/{harness.tag}") == 200:
        return ref
    made = _layers(harness, log)
    image = oci.Image(harness.repository, harness.tag, made, recipes.ENVIRONMENT, harness.labels)
    config, manifest = oci.described(image)
    for layer in made:
        log(f"pushing {layer.size / 1e6:.0f} MB")
        _push(registry, layer.digest, layer.path)
    with tempfile.NamedTemporaryFile() as file:
        file.write(config)
        file.flush()
        _push(registry, f"sha256:{hashlib.sha256(config).hexdigest()}", Path(file.name))
    status = _ask("PUT", f"{registry}/manifests/{harness.tag}", manifest, {"Content-Type": oci.MANIFEST_TYPE})
    if status != 201:
        raise OpsError(f"The lab's registry did not take {harness.repository}:{harness.tag}: status {status}.")
    return ref


def _layers(harness: Harness, log: Log) -> tuple[oci.Layer, ...]:
    """Debian's Python and, above it, the harness; from the cache where an earlier lab made them."""
    store = cache_root() / "images"
    store.mkdir(parents=True, exist_ok=True)
    recipe = [layers.base(), _recipe(harness)]
    with locked(store):
        workplace = store / ".build"
        if workplace.exists():  # of a build that was killed
            shutil.rmtree(workplace)
        workplace.mkdir()
        try:
            made = build.ensure_layers(recipe, store / "layers", workplace, log)
        finally:
            shutil.rmtree(workplace)
    return made["base"], made[harness.layer]


def _recipe(harness: Harness) -> LayerRecipe:
    text = (resources.files("sglang_ops.lab.images") / harness.pins).read_text("utf-8")
    pins = [line for line in text.splitlines() if line and not line.startswith("#")]
    programs = {name: _PROGRAM.format(module=of, name=do) for name, (of, do) in harness.programs.items()}

    def fill(tree: Path, log: Log) -> None:
        log(f"{harness.layer}: {len(pins)} packages, 0.2 GB to download")
        with tempfile.TemporaryDirectory(dir=tree.parent) as place:
            downloads = Path(place)
            built = [pin for pin in pins if pin.partition("==")[0] in _SOURCES]
            wheels.fetch([pin for pin in pins if pin not in built], downloads)
            _build(built, downloads)
            wheels.unpack(downloads, tree / recipes.SITE, without=harness.without)
        for name, text in questions.SENTENCES.items():
            _write(tree / questions.IN_IMAGE.lstrip("/") / name, text, 0o644)
        for name, text in programs.items():
            _write(tree / "usr/local/bin" / name, text, 0o755)

    inputs: list[object] = [pins, harness.without, harness.imports, questions.IN_IMAGE, questions.SENTENCES]
    inputs += [programs] if programs else []
    return LayerRecipe(harness.layer, inputs, fill, harness.imports)


def _write(path: Path, text: str, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


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
