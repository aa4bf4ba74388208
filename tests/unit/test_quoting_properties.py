"""From the deployment file to the unit and back: a reader written from systemd's manual gets out what was put in.

The reader knows nothing of our writer. Its rules: systemd.syntax(7) for lines and quoting, systemd.service(5) for
`$`, systemd.unit(5) for `%`; and RFC 4180 for the records that `--mount` takes.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sglang_ops.planning import ResolvedImage, Settings
from sglang_ops.planning.command import ModelSource, Mount, container_environment
from sglang_ops.planning.service import Resolved
from sglang_ops.planning.systemd import command, paths, quote
from sglang_ops.spec import SpecErrors, load_mapping

NAME = "sglang-m"
DIGEST = f"org/image@sha256:{'ab' * 32}"
ESCAPES = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "s": " "}
# Unicode's "noncharacters": systemd takes no line with one of them for UTF-8.
RESERVED = [*range(0xFDD0, 0xFDF0), *(plane + end for plane in range(0, 0x110000, 0x10000) for end in (0xFFFE, 0xFFFF))]
CHARACTERS = st.characters(exclude_characters="\0" + "".join(map(chr, RESERVED)), exclude_categories=["Cs"])
SPECIAL = st.sampled_from("\n\r\t\\\"'$%{}`,:;=#@-+!&|<>()[]*?~ \x7f\x85\u2028\ufeffé")
TEXT = st.text(CHARACTERS | SPECIAL, max_size=30)
PRINTABLE = st.characters(exclude_categories=["C", "Z"]) | st.sampled_from(" \\\"'$%{}`,;=#é")
PATH = st.text(PRINTABLE, max_size=30).map(lambda text: f"/{text}").filter(lambda path: ".." not in path.split("/"))


# --- the reader ---


def setting(unit: str, key: str) -> str:
    """The value of a setting that stands in the unit once, its lines put together."""
    assert not unit.startswith("\ufeff")
    values, lines = [], iter(re.split(r"[\n\r\0]", unit))
    for line in lines:
        whole = line.lstrip(" \t")
        while whole.endswith("\\"):
            following = next(lines)
            if not following.lstrip(" \t").startswith(("#", ";")):
                whole = f"{whole[:-1]} {following}"
        if whole.startswith(f"{key}="):
            values.append(whole.partition("=")[2].strip(" \t"))
    (value,) = values
    return value


def words(line: str, *, c_escapes: bool = True) -> Iterator[str]:
    """The words of a line, unquoted; without C escapes a backslash takes the next character as it is."""
    rest = line.lstrip(" \t")
    while rest:
        word, quote_mark = "", ""
        while rest and (quote_mark or rest[0] not in " \t"):
            if rest[0] == "\\":
                char, rest = unescaped(rest) if c_escapes else (rest[1], rest[2:])
                word += char
                continue
            char, rest = rest[0], rest[1:]
            if char == quote_mark:
                quote_mark = ""
                assert not rest or rest[0] in " \t", "quotes stand around whole words"
            elif not quote_mark and char in "\"'":
                assert not word, "quotes stand around whole words"
                quote_mark = char
            else:
                assert quote_mark or char != ";" or word, "a semicolon of its own ends the command"
                word += char
        assert not quote_mark, "unbalanced quotes"
        yield word
        rest = rest.lstrip(" \t")


def unescaped(text: str) -> tuple[str, str]:
    """The character that an escape at the beginning of `text` means, and what follows it."""
    kind = text[1]
    if kind in ESCAPES:
        return ESCAPES[kind], text[2:]
    if kind in "\\\"'":
        return kind, text[2:]
    digits = {"x": 2, "u": 4, "U": 8}.get(kind)
    if digits:
        code = int(text[2 : 2 + digits], 16)
        assert code < 128 or kind != "x", "a byte that is no character"
        return chr(code), text[2 + digits :]
    assert kind in string.octdigits
    return chr(int(text[1:4], 8)), text[4:]


def expanded(word: str) -> str:
    """`%` resolved; every specifier but the unit's name would be a leak of the host."""
    return re.sub(r"%(.)", lambda found: {"%": "%", "N": NAME}[found[1]], word, flags=re.DOTALL)


def exec_words(line: str) -> list[str]:
    """The arguments that an Exec line gives to its process."""
    found = []
    for word in words(line):
        resolved = expanded(word)
        assert "$" not in resolved.replace("$$", ""), f"systemd would look for a variable in {resolved!r}"
        found.append(resolved.replace("$$", "$"))
    return found


def record(text: str) -> list[str]:
    """The fields of one CSV record."""
    fields = re.findall(r'(?:^|,)(?:"((?:[^"]|"")*)"|([^",]*))(?=,|$)', text)
    made = [inner.replace('""', '"') if inner else plain for inner, plain in fields]
    assert sum(map(len, made)) + len(made) - 1 <= len(text)
    return made


@dataclass(frozen=True)
class Container:
    """What `docker run` was asked for."""

    flags: list[tuple[str, str]]
    image: str
    argv: list[str]

    def values(self, flag: str) -> list[str]:
        return [value for name, value in self.flags if name == flag]


def container(unit: str) -> Container:
    """The container of a unit's ExecStart."""
    _, run, *rest = exec_words(setting(unit, "ExecStart"))
    assert run == "run"
    flags: list[tuple[str, str]] = []
    while rest[0].startswith("--"):
        alone = rest[0] in {"--rm", "--init"}
        flags.append((rest.pop(0), "" if alone else rest.pop(0)))
    (entrypoint,) = [value for name, value in flags if name == "--entrypoint"]
    return Container(flags, rest[0], [entrypoint, *rest[1:]])


# --- what it finds ---


@given(st.lists(st.lists(TEXT, min_size=1, max_size=3), min_size=1, max_size=5))
@example([["a\n", "User=nobody"], ["plain"]])
@example([["a\\"], [";"], ["#"], [""], ["$$"], ["%N"]])
def test_every_argument_survives_the_exec_line(groups: list[list[str]]) -> None:
    line = command([["/usr/bin/docker", "run"], *[[quote(word) for word in group] for group in groups]])
    unit = f"[Service]\nType=exec\nExecStart={line}\nRestart=always\n"
    assert exec_words(setting(unit, "ExecStart"))[2:] == [word for group in groups for word in group]
    assert setting(unit, "Restart") == "always"


@given(PATH, PATH, st.booleans())
def test_every_path_survives_the_mount_flag(source: str, target: str, read_only: bool) -> None:
    flag = Mount(source, target, read_only).flag()
    expected = ["type=bind", f"source={source}", f"target={target}", *(["readonly"] if read_only else [])]
    assert record(flag) == expected


@given(st.lists(PATH, min_size=1, max_size=4))
def test_every_path_survives_the_list_of_required_mounts(names: list[str]) -> None:
    assert [expanded(word) for word in words(paths(names), c_escapes=False)] == names


def resolved(deployment: dict[str, Any], **more: Any) -> Resolved:
    """A deployment as a file has it, decided for a host."""
    base = {"served_model_name": "m", "name": "m", "checkpoint_path": "/models/m", "image": "org/image:v0.5.23"}
    made = load_mapping({"deployment": base | deployment}, "test").deployment
    source = ModelSource(directory=made.checkpoint_path)
    return Resolved(
        deployment=made,
        settings=Settings(),
        image=ResolvedImage(made.image, DIGEST),
        source=source,
        gpus=(),
        device_flags=(),
        environment=container_environment(made, Settings(), source, ()),
        fingerprints=more.get("fingerprints", {}),
        engine_path="/usr/bin/docker",
    )


PLAIN = TEXT.filter(lambda text: "${" not in text)  # `${…}` is part of the file's language, and so is ???
MODEL_NAME = st.text(PRINTABLE, max_size=20).map(lambda text: f"m{text}.").filter(
    lambda name: ":" not in name and "${" not in name
)


@settings(deadline=None)
@given(
    name=MODEL_NAME,
    extra=st.lists(PLAIN.map(lambda text: f"--x={text}") | PLAIN.map(lambda text: f"v{text}"), max_size=5),
    values=st.lists(PLAIN.filter(lambda text: "\r\n" not in text), max_size=5),
    checkpoint=PATH.filter(lambda path: "${" not in path),
    secret=st.booleans(),
)
def test_every_value_of_a_file_survives_to_the_unit(
    name: str, extra: list[str], values: list[str], checkpoint: str, secret: bool
) -> None:
    variables = {f"V{number}": f"lit:{value}" for number, value in enumerate(values)}
    wanted = {"served_model_name": name, "extra_args": extra, "env_vars": variables, "checkpoint_path": checkpoint}
    decided = resolved(wanted, fingerprints={"A_TOKEN": "00"} if secret else {})
    unit = decided.unit("0123456789ab")
    found = container(unit)
    argv = found.argv[4:] if secret else found.argv
    assert (found.image, argv[:3]) == (DIGEST, ["python3", "-m", "sglang.launch_server"])
    assert argv[argv.index("--served-model-name") + 1] == name
    assert argv[len(argv) - len(extra) :] == extra
    given_values = dict(value.split("=", 1) for value in found.values("--env"))
    assert [given_values[f"V{number}"] for number in range(len(values))] == values
    assert ["type=bind", f"source={checkpoint}", "target=/checkpoint", "readonly"] in [
        record(value) for value in found.values("--mount")
    ]
    assert checkpoint in [expanded(word) for word in words(setting(unit, "RequiresMountsFor"), c_escapes=False)]
    assert expanded(setting(unit, "Description")) == f"SGLang: {name} (release 0123456789ab)"
    assert [setting(unit, key) for key in ("Type", "KillMode", "WantedBy")] == ["exec", "mixed", "multi-user.target"]


@given(PLAIN)
def test_interpolation_elsewhere_in_the_file_leaves_a_value_alone(text: str) -> None:
    variables = {"A": f"lit:{text}", "B": "${deployment.served_model_name}"}
    wanted = {"served_model_name": "m", "hf_model_handle": "o/m", "env_vars": variables}
    made = load_mapping({"deployment": wanted}, "test")
    assert (made.deployment.env_vars["A"].value, made.deployment.env_vars["B"].value) == (text, "m")


@pytest.mark.parametrize(
    ("wanted", "key"),
    [
        ({"extra_args": ["--x", "a\0b"]}, "deployment.extra_args"),
        ({"env_vars": {"A": "fine", "B": "a\0b"}}, "deployment.env_vars.B"),
        ({"env_vars": {"B": "lit:a\0b"}}, "deployment.env_vars.B"),
        ({"served_model_name": "a\0b"}, "deployment.served_model_name"),
        ({"checkpoint_path": "/a\0b"}, "deployment.checkpoint_path"),
        ({"checkpoint_path": "/a\nb"}, "deployment.checkpoint_path"),
        ({"env_vars": {"HF_HOME": "/a\0b"}}, "deployment.env_vars.HF_HOME"),
        ({"pre_cmd": "a\0b"}, "deployment.pre_cmd"),
        ({"command": ["a", "b\0"]}, "deployment.command"),
        ({"mounts": {"/a\0": "/b"}}, "deployment.mounts./a\0"),
        ({"extra_args": ["--x", "a\ud800b"]}, "deployment.extra_args"),
        ({"extra_args": ["--x", "a\ufffeb"]}, "deployment.extra_args"),
        ({"env_vars": {"B": "\ufdd0"}}, "deployment.env_vars.B"),
        ({"env_vars": {"B": "\U0010ffff"}}, "deployment.env_vars.B"),
        ({"env_vars": {"B": "a\r\nb"}}, "deployment.env_vars.B"),
        ({"pre_cmd": "echo \ufffe"}, "deployment.pre_cmd"),
        ({"endpoints": {"chat": "/é"}}, "deployment.endpoints.chat"),
        ({"image": "org/image:tag\n"}, "deployment.image"),
        ({"name": "m\n"}, "deployment.name"),
        ({"env_vars": {"A\n": "x"}}, "deployment.env_vars.A\n"),
    ],
)
def test_what_cannot_be_carried_is_refused_by_its_key(wanted: dict[str, Any], key: str) -> None:
    with pytest.raises(SpecErrors) as refused:
        resolved(wanted)
    assert [problem.path for problem in refused.value.errors] == [key]
