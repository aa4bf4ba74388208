"""Kinds of values that keys of the deployment file have: how each is read, checked, and told to an editor."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetPydanticSchema,
    PlainSerializer,
    WithJsonSchema,
    model_serializer,
)
from pydantic_core import core_schema

# distribution reference grammar: host[:port]/path[:tag][@sha256:...]
_IMAGE = re.compile(
    r"^(?:[a-zA-Z0-9][a-zA-Z0-9.-]*(?::\d{1,5})?/)?[a-z0-9]+(?:[._/-]+[a-z0-9]+)*"
    r"(?::\w[\w.-]{0,127})?(?:@sha256:[0-9a-f]{64})?\Z",
    re.ASCII,
)
ENV_NAME = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*\Z")
_SECRET_NAME = re.compile(r"(TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|CREDENTIAL|PRIVATE_KEY)", re.IGNORECASE)
_INTEGER = re.compile(r"^[+-]?[0-9]{1,18}\Z")
# Variables that name a directory of the host; what they mean: sglang_ops/spec/cache.py.
CACHE_VARIABLES = ("HF_HOME", "HF_HUB_CACHE", "TRANSFORMERS_CACHE")


class Mistake(ValueError):
    """A value that cannot be used. `where` is the rest of the path, for checks that see more than one value."""

    def __init__(self, message: str, *where: str, fix: str | None = None) -> None:
        super().__init__(message)
        self.where = where
        self.fix = fix


def carried(text: str) -> str:
    """`text`, if a server can be given it byte for byte. Raises Mistake with the character that cannot be carried."""
    for code in map(ord, text):
        if code == 0:
            raise Mistake("contains a NUL character.")
        # Halves of surrogate pairs are no UTF-8; Unicode's "noncharacters" are refused by systemd and D-Bus.
        if 0xD800 <= code <= 0xDFFF or 0xFDD0 <= code <= 0xFDEF or code & 0xFFFE == 0xFFFE:
            raise Mistake(f"contains U+{code:04X}, which is no character of Unicode.")
    return text


class EnvValue(BaseModel):
    """The value of one environment variable: written in the file, or a reference to where it is.

    `host:NAME` is read from the environment of the machine that runs sglang-ops, `runtime:NAME` from
    /etc/sglang-ops/runtime.env on the GPU host, `lit:TEXT` and plain text stand for themselves.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["literal", "host", "runtime"]
    value: str

    @classmethod
    def parse(cls, raw: object) -> EnvValue:
        if raw is None or not isinstance(raw, str | int | float):
            found = "nothing" if raw is None else f"a {type(raw).__name__}"
            raise Mistake(f"must be text or a number, found {found}.", fix="Put text in quotes.")
        text = str(raw).lower() if isinstance(raw, bool) else str(raw)
        for prefix, kind in (("host:", "host"), ("runtime:", "runtime")):
            if text.startswith(prefix):
                name = text.removeprefix(prefix)
                if not ENV_NAME.match(name):
                    raise Mistake(f"must have the name of an environment variable after '{prefix}'.")
                return cls(kind=kind, value=name)  # type: ignore[arg-type]
        if "\r\n" in text:
            raise Mistake("contains a carriage return before a newline, which podman leaves out.", fix="Write \\n.")
        return cls(kind="literal", value=carried(text.removeprefix("lit:")))

    def reference(self) -> str:
        """How the value is shown to people: references stay references."""
        return self.value if self.kind == "literal" else f"{self.kind}:{self.value}"

    @model_serializer
    def written(self) -> str:
        """The value as a deployment file writes it; `parse` reads it back."""
        ambiguous = self.kind == "literal" and self.value.startswith(("host:", "runtime:", "lit:"))
        return f"lit:{self.value}" if ambiguous else self.reference()


def is_secret(name: str, value: EnvValue) -> bool:
    """Secrets are what comes from the operator's environment, and what is named like one."""
    return value.kind == "host" or bool(_SECRET_NAME.search(name))


def is_path(text: str) -> bool:
    """An absolute path that can stand in a unit and in a mount."""
    return text.startswith("/") and text.isprintable() and ".." not in text.split("/")


RESERVED = "ops-"  # units of this tool itself are called sglang-ops-…


def slug(text: str) -> str:
    """`text` as the name of a unit: lower-case letters, digits and '-', 48 at most; "" where nothing is left."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:48].strip("-")


def is_unit_name(value: str) -> str:
    """`value`, if a unit can be called so. Raises Mistake."""
    if not re.match(r"^[a-z0-9][a-z0-9-]{0,47}\Z", value):
        fix = f"Write '{slug(value)}'." if slug(value) else None
        raise Mistake(f"'{value}' must be lower-case letters, digits and '-', 48 at most.", fix=fix)
    if value.startswith(RESERVED):
        raise Mistake(reserved(value), fix=f"Write '{value.removeprefix(RESERVED) or 'model'}'.")
    return value


def reserved(name: str) -> str:
    """Why no unit of a deployment is called so."""
    return f"'{name}' would make the unit sglang-{name}; names that begin with '{RESERVED}' are this tool's own."


def is_pattern(value: str) -> str:
    """`value`, if it can be a pattern of hosts. Raises Mistake."""
    if not value.strip() or not value.isprintable():
        raise Mistake(f"{value!r} is not a pattern of hosts like 'gpu_large' or 'gpu:!old'.")
    return value


def is_image(value: str, example: str) -> str:
    """`value`, if it is a reference to a container image. Raises Mistake."""
    if not _IMAGE.match(value):
        raise Mistake(f"'{value}' is not an image reference like '{example}'.")
    return value


class Mount(BaseModel):
    """A bind mount besides those that the other keys make; `source` is the host's path."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    target: str
    read_only: bool = False

    @classmethod
    def parse(cls, source: object, written: object) -> Mount:
        """`source: target` or `source: target:ro`, as `docker run --volume` has it."""
        if not isinstance(source, str) or not is_path(source):
            raise Mistake(f"{source!r} must be an absolute path on the host, without '..'.", str(source))
        target, mode = written, ""
        if isinstance(written, str) and written.endswith((":ro", ":rw")):
            target, _, mode = written.rpartition(":")
        if not isinstance(target, str) or not is_path(target) or ":" in target or target == "/":
            message = f"is mounted at {written!r}, which must be an absolute path in the container"
            raise Mistake(f"{message}, with ':ro' behind it where the server shall not write.", source)
        return cls(source=source, target=target, read_only=mode == "ro")


def _env_name(name: str) -> str:
    if not ENV_NAME.match(name):
        raise Mistake(f"'{name}' is not a name for an environment variable.")
    return name


def _cache_paths(values: dict[str, EnvValue]) -> dict[str, EnvValue]:
    for name in CACHE_VARIABLES:
        value = values.get(name)
        if value is not None and (value.kind != "literal" or not is_path(value.value)):
            shown = value.reference()
            raise Mistake(f"{name} is {shown!r} and must be an absolute path, without '..'.", name)
    return values


def _integer(raw: object) -> object:
    """Numbers that come out of `${oc.env:…}` are text."""
    return int(raw) if isinstance(raw, str) and _INTEGER.match(raw.strip()) else raw


def _truth(raw: object) -> object:
    return {"true": True, "false": False}.get(raw.lower(), raw) if isinstance(raw, str) else raw


def _arguments(raw: object) -> tuple[str, ...]:
    """`extra_args` as the page writes it (one shell-quoted string) or as a list of ready arguments."""
    if raw is None:
        return ()
    if isinstance(raw, str):
        try:
            return tuple(shlex.split(raw))
        except ValueError as error:
            raise Mistake(f"cannot be split into arguments: {error}.") from error
    if isinstance(raw, list | tuple):
        return tuple(_words(raw))
    raise Mistake(f"must be text or a list, found {raw!r}.")


def _words(raw: list[Any] | tuple[Any, ...]) -> Iterator[str]:
    for position, item in enumerate(raw):
        if item is None or not isinstance(item, str | int | float):
            raise Mistake(f"must be text or a number, found {item!r}.", str(position), fix="Put it in quotes.")
        yield str(item).lower() if isinstance(item, bool) else str(item)


def _command(raw: object) -> str | tuple[str, ...] | None:
    if isinstance(raw, list | tuple) and raw and raw[0] not in ("", None):
        return tuple(_words(raw))
    if raw is None or (isinstance(raw, str) and raw.strip()):
        return raw
    raise Mistake(f"must be a command as text for a shell or as a list of arguments, found {raw!r}.")


def _mounts(raw: object) -> tuple[Mount, ...]:
    if raw is None:
        return ()
    if isinstance(raw, Mapping):
        return tuple(Mount.parse(source, target) for source, target in raw.items())
    if isinstance(raw, list | tuple) and all(isinstance(item, Mount) for item in raw):
        return tuple(raw)
    raise Mistake(f"must map paths on the host to paths in the container, found {raw!r}.")


def a_reference(raw: object) -> object:
    """A secret by reference only, for keys that clients send."""
    if raw is None or isinstance(raw, EnvValue):
        return raw
    value = EnvValue.parse(raw)
    if value.kind == "literal":  # the text itself is not repeated: it may be the key
        fix = "Write host:NAME for a variable where sglang-ops runs, or runtime:NAME for one of the host that serves."
        raise Mistake("is a secret and does not stand in the file.", fix=fix)
    return value


def _plain(read: Any, schema: dict[str, Any]) -> tuple[Any, WithJsonSchema]:
    """A value that `read` alone reads and checks; `schema` is what editors are told of it."""
    check = GetPydanticSchema(lambda _type, _handler: core_schema.no_info_plain_validator_function(read))
    return check, WithJsonSchema(schema)


_WORD = {"type": ["string", "number", "boolean"]}
_NUMBER_AS_TEXT = {"type": "string", "pattern": "^[0-9]+$"}


def _number_schema(low: int, high: int, *more: dict[str, Any]) -> WithJsonSchema:
    number = {"type": "integer", "minimum": low, "maximum": high}
    return WithJsonSchema({"anyOf": [number, _NUMBER_AS_TEXT, *more]})


_Size = Annotated[int, Field(strict=True, ge=1, le=1024), BeforeValidator(_integer)]
Size = Annotated[_Size, _number_schema(1, 1024)]
SizeOrAuto = Annotated[
    int | Literal["auto"],
    GetPydanticSchema(
        lambda _type, handler: core_schema.no_info_wrap_validator_function(
            lambda raw, number: raw if raw == "auto" else number(raw), handler(_Size)
        )
    ),
    PlainSerializer(lambda value: value),
    _number_schema(1, 1024, {"const": "auto"}),
]
Count = Annotated[int, Field(strict=True, ge=0, le=100_000), BeforeValidator(_integer), _number_schema(0, 100_000)]
Seconds = Annotated[int, Field(strict=True, ge=1, le=604_800), BeforeValidator(_integer), _number_schema(1, 604_800)]
Tokens = Annotated[int, Field(strict=True, ge=1, le=32768), BeforeValidator(_integer), _number_schema(1, 32768)]
Port = Annotated[int, Field(strict=True, ge=1, le=65535), BeforeValidator(_integer), _number_schema(1, 65535)]
Truth = Annotated[
    bool,
    Field(strict=True),
    BeforeValidator(_truth),
    WithJsonSchema({"anyOf": [{"type": "boolean"}, {"enum": ["true", "false"]}]}),
]
EnvVars = Annotated[
    dict[
        Annotated[str, AfterValidator(_env_name)],
        Annotated[EnvValue, BeforeValidator(lambda raw: raw if isinstance(raw, EnvValue) else EnvValue.parse(raw))],
    ],
    AfterValidator(_cache_paths),
    BeforeValidator(lambda raw: {} if raw is None else raw),
    WithJsonSchema(
        {
            "type": ["object", "null"],
            "propertyNames": {"pattern": "^[A-Za-z_][A-Za-z0-9_]*$"},
            "additionalProperties": _WORD,
        }
    ),
]
Arguments = Annotated[
    tuple[str, ...],
    *_plain(_arguments, {"anyOf": [{"type": ["string", "null"]}, {"type": "array", "items": _WORD}]}),
]
Command = Annotated[
    str | tuple[str, ...] | None,
    *_plain(
        _command,
        {"anyOf": [{"type": ["string", "null"]}, {"type": "array", "items": _WORD, "minItems": 1}]},
    ),
    PlainSerializer(lambda value: value if value is None or isinstance(value, str) else list(value)),
]
Mounts = Annotated[
    tuple[Mount, ...],
    *_plain(
        _mounts,
        {
            "type": ["object", "null"],
            "propertyNames": {"pattern": "^/"},
            "additionalProperties": {"type": "string", "pattern": "^/"},
        },
    ),
    PlainSerializer(lambda value: {item.source: item.target + ":ro" * item.read_only for item in value}),
]
