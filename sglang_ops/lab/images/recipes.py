"""What is in the lab's images: packages, pins, what is left out of them, and how a container starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources

from sglang_ops.simulator import NAME as SIMULATOR
from sglang_ops.simulator import SGLANG_VERSION

ENGINE_REPOSITORY = "sglang"
ENGINE_TAG = f"v{SGLANG_VERSION}-cpu"
SIMULATOR_REPOSITORY = SIMULATOR
SIMULATOR_TAG = f"v{SGLANG_VERSION}"
GATEWAY_VERSION = "0.3.2"
GATEWAY_REPOSITORY = "sgl-model-gateway"
GATEWAY_TAG = f"v{GATEWAY_VERSION}"

# Debian's own Python looks here, so no virtual environment is needed.
SITE = "usr/local/lib/python3.11/dist-packages"

SUITE = "bookworm"
# libstdc++6 and libnuma1 for the engine's binaries, util-linux for `lscpu`, which it calls.
BASE_PACKAGES = ("python3", "libstdc++6", "libnuma1", "util-linux")

# Nothing is ever installed in a container of these, so what installs goes; and what only people read.
BASE_WITHOUT = (
    "etc/apt", "usr/lib/apt", "usr/lib/*/libapt-*", "usr/bin/apt*", "var/cache/*", "var/lib/apt", "var/log/*",
    "usr/bin/dpkg*", "usr/share/dpkg", "var/lib/dpkg/info", "var/lib/dpkg/*-old",
    "usr/bin/perl*", "usr/lib/*/perl*", "usr/lib/*/libperl*", "usr/share/perl*",
    "usr/lib/*/gconv", "usr/share/i18n", "usr/share/bash-completion", "usr/share/common-licenses",
    "usr/share/doc", "usr/share/info", "usr/share/lintian", "usr/share/locale", "usr/share/man",
    "usr/share/zoneinfo/right", "usr/share/zoneinfo/posix",
    "usr/lib/python3.11/lib2to3", "usr/lib/python3.11/pydoc_data", "usr/lib/**/__pycache__",
    "etc/hostname", "etc/machine-id", "etc/resolv.conf", "dev/*", "run/*", "tmp/*",
)  # fmt: skip

# huggingface_hub with its program `hf`, and what that imports; versions are those of the engine's pins.
HUB_CLIENT = (
    "huggingface_hub", "anyio", "click", "filelock", "fsspec", "h11", "httpcore2", "httpx2", "idna", "packaging",
    "PyYAML", "tqdm", "truststore", "typing_extensions",
)  # fmt: skip

HUB_CLIENT_WITHOUT = ("*/tests/*", "*.pyi", "*.pyx", "*.pxd")

# What the engine does not open when it serves a text model on the CPU: GPU back ends, headers, tests, stubs,
# programs.
ENGINE_WITHOUT = (
    "*.a", "*.pxd", "*.pyi", "*.pyx", "*/benchmarks/*", "*/tests/*",
    "numpy/*.h", "numpy/distutils/*", "numpy/f2py/*",
    "sglang/benchmark/*", "sglang/multimodal_gen/*", "sglang/test/*",
    "sympy/parsing/*/*", "sympy/physics/*", "sympy/stats/*",
    "torch/bin/[!t]*", "torch/bin/test_*", "torch/include/*", "torch/share/*", "torch/test/*", "torchgen/packaged/*",
    "triton/_C/libproton.so", "triton/backends/*/bin/*", "triton/backends/*/include/*", "triton/backends/*/lib/*",
    "triton/instrumentation/*", "tvm_ffi/3rdparty/*", "tvm_ffi/include/*",
    "zstandard/_cffi*",
)  # fmt: skip
# Their symbol tables for debuggers are 380 MB.
ENGINE_STRIPPED = (
    "torch/lib/libtorch_cpu.so", "torch/lib/libtorch_python.so", "triton/_C/libtriton.so", "uvloop/loop*.so",
)  # fmt: skip

# The modules of a server's processes, and packages of which they import more while they start: a third of all
# there are. Most of an engine's start is imports.
ENGINE_IMPORTS = """
import huggingface_hub.cli.hf
import sglang.cli.serve
import sglang.launch_server
import sglang.srt.entrypoints.http_server
import sglang.srt.managers.detokenizer_manager
import sglang.srt.managers.scheduler
import sglang.srt.model_executor.model_runner
from sglang.srt.models.registry import import_model_classes

import_model_classes("sglang.srt.models")
import compileall, importlib
for package in (
    "huggingface_hub", "prometheus_client", "sglang.srt.arg_groups", "sglang.srt.constrained", "sglang.srt.dllm",
    "sglang.srt.distributed", "sglang.srt.entrypoints", "sglang.srt.rust_extensions", "uvicorn",
):
    compileall.compile_dir(importlib.import_module(package).__path__[0], quiet=2)
"""

# SGLang's serving benchmark, a layer of its own; all that it imports is in the engine's, but for one package.
BENCHMARK = ("sglang/benchmark/*",)
BENCHMARK_FILES: Mapping[str, str] = {
    f"{SITE}/datasets/__init__.py": '''"""In the place of the package datasets, which needs pyarrow and pandas.

The benchmark imports it whatever it measures. What would load data from the hub says that it cannot.
"""


def load_dataset(*_args: object, **_keywords: object) -> None:
    raise ImportError("the image of the lab has no package datasets")
''',
}

_PROGRAM = "#!/usr/bin/python3\nimport sys\nfrom {module} import main\nsys.exit(main())\n"
HUB_CLIENT_FILES: Mapping[str, str] = {"usr/local/bin/hf": _PROGRAM.format(module="huggingface_hub.cli.hf")}
ENGINE_FILES: Mapping[str, str] = {
    **HUB_CLIENT_FILES,
    "usr/local/bin/sglang": _PROGRAM.format(module="sglang.cli.main"),
}
# A package of the engine's name, so that its commands start the simulator.
SIMULATOR_FILES: Mapping[str, str] = {
    "usr/local/bin/sglang": _PROGRAM.format(module="sglang_ops.simulator.command"),
    f"{SITE}/sglang/__init__.py": f'"""The simulator in the place of SGLang."""\n\n__version__ = "{SGLANG_VERSION}"\n',
    f"{SITE}/sglang/launch_server.py": "from sglang_ops.simulator.main import main\n\nmain()\n",
    f"{SITE}/sglang/version.py": "from sglang import __version__ as __version__\n",
    f"{SITE}/sglang/srt/server_args.py": "from sglang_ops.simulator.arguments import ServerArgs as ServerArgs\n",
    f"{SITE}/sglang_ops/__init__.py": "",
}

ENVIRONMENT: Mapping[str, str] = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "PYTHONNODEBUGRANGES": "1",  # a sixth less to load at every start; tracebacks do without the ^^^^ lines
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
}
ENGINE_LABELS: Mapping[str, str] = {
    "org.opencontainers.image.title": "SGLang for the CPU",
    "org.opencontainers.image.description": "SGLang as released, on PyTorch's CPU build, trimmed for the lab",
    "org.opencontainers.image.version": SGLANG_VERSION,
}
SIMULATOR_LABELS: Mapping[str, str] = {
    "org.opencontainers.image.title": SIMULATOR,
    "org.opencontainers.image.description": "Simulator of SGLang's command line and HTTP surface; it runs no model",
    "org.opencontainers.image.version": SGLANG_VERSION,
}


GATEWAY_LABELS: Mapping[str, str] = {
    "org.opencontainers.image.title": "SGLang's model gateway",
    "org.opencontainers.image.description": "sglang-router as released, for the lab",
    "org.opencontainers.image.version": GATEWAY_VERSION,
}
# What the router does not open: its load balancer in Python is for debugging, but its start imports what that needs.
GATEWAY_WITHOUT = ("*.pyi", "*.pyx", "*.pxd", "*/tests/*")


def gateway_pins() -> list[str]:
    """The exact versions of the router's packages, which were tried together."""
    return _pins("gateway-pins.txt")


def engine_pins(*, only: Sequence[str] = ()) -> list[str]:
    """The exact versions of the engine's packages, which were tried together; `only` some, by name."""
    return [pin for pin in _pins("engine-pins.txt") if not only or pin.partition("==")[0] in only]


def _pins(name: str) -> list[str]:
    text = (resources.files(__package__) / name).read_text("utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]
