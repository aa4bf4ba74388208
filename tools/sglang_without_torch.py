"""Run a script against SGLang's sources without PyTorch: `python sglang_without_torch.py SOURCES SCRIPT`.

SGLang's parser needs a dozen of its modules; they import hundreds of others, and those PyTorch, CUDA libraries
and more. Here the dozen are real and whatever else is asked for, inside SGLang or not, is a stub that can be
called, subclassed, iterated, compared and used as a decorator. Nothing of that can reach a list of arguments
unseen: a stub has no text.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import re
import sys
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

# What the parser's options, their types and their choices are made of.
_REAL = re.compile(
    r"sglang\.(?:_?version|"
    r"srt\.(?:server_args.*|arg_groups.*|environ|constants|"
    r"utils|utils\.(?:common|network|json_response)|"
    r"parser\..*|reasoning_parser|"
    r"function_call\..*|function_call_parser|"
    r"lora\.lora_registry|model_executor\.cuda_graph_config|connector\.utils)|"
    r"(?:kernels\.ops|jit_kernel)\.kv_canary\.consts)"
)
# Small, pure in their effect, and the options are built with them.
_LIBRARIES = {"msgspec"}


class _StubType(type):
    """Makes a class that answers to everything; the class itself is the stub, calls included."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        return _stub(f"{cls.__qualname__}.{name}")

    def __call__(cls, *arguments: Any, **keywords: Any) -> Any:
        if not cls.__dict__.get("_is_stub"):
            return super().__call__(*arguments, **keywords)
        if len(arguments) == 1 and not keywords and isinstance(arguments[0], types.FunctionType | type):
            return arguments[0]  # a decorator leaves the function as it is
        return cls

    def __iter__(cls) -> Iterator[Any]:
        return iter((cls,))  # not nothing: a list of choices made of it must not look complete

    def __or__(cls, other: Any) -> Any:
        return Any

    def __contains__(cls, item: object) -> bool:
        return False

    def __len__(cls) -> int:
        return 0

    def __bool__(cls) -> bool:
        return False

    __ror__ = __or__
    __enter__ = __getitem__ = __sub__ = __add__ = __mul__ = __truediv__ = lambda cls, *_: cls
    __exit__ = __lt__ = __gt__ = __le__ = __ge__ = lambda *_: False


def _stub(name: str) -> type:
    return _StubType(name, (), {"_is_stub": True, "__init__": lambda *_, **__: None})


class _StubModule(types.ModuleType):
    __version__ = "0"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        return _stub(f"{self.__name__}.{name}")


class _Stubs(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Comes first, and leaves to the others only what is to be real."""

    def __init__(self, sources: Path) -> None:
        self._sources = sources

    def find_spec(
        self, name: str, path: Sequence[str] | None, _target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        top = name.partition(".")[0]
        if top in sys.stdlib_module_names or top in _LIBRARIES or top == "__main__":
            return None
        if _REAL.fullmatch(name) and importlib.machinery.PathFinder.find_spec(name, path) is not None:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _StubModule(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        module.__path__ = [str(self._sources.joinpath(*module.__name__.split(".")))]  # real modules may be inside


def main(sources: str, script: str) -> None:
    sys.path.insert(0, sources)
    sys.meta_path.insert(0, _Stubs(Path(sources)))
    exec(compile(script, "script", "exec"), {"__name__": "__main__"})  # noqa: S102 (our own script)


if __name__ == "__main__":
    main(*sys.argv[1:])
