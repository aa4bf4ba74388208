"""Quoting: what systemd reads back is, byte for byte, what was meant."""

from __future__ import annotations

import csv
import io
import re

from hypothesis import given
from hypothesis import strategies as st

from sglang_ops.planning.command import Mount, option
from sglang_ops.planning.systemd import Unit, quote

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=0, max_size=40)
_ESCAPE = re.compile(r'\\x([0-9a-f]{2})|\\([\\"ntr])|%%|\$\$')
_PLAIN = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", '"': '"'}


def read_back(quoted: str) -> str:
    """systemd's own rules: C escapes in double quotes, then `%%` and `$$`."""
    if not quoted.startswith('"'):
        assert not set(quoted) & set(" \t\n\\\"'%$;")
        return quoted
    assert quoted.endswith('"')
    assert "\n" not in quoted

    def one(match: re.Match[str]) -> str:
        if match.group(1):
            return chr(int(match.group(1), 16))
        return _PLAIN[match.group(2)] if match.group(2) else match.group(0)[0]

    return _ESCAPE.sub(one, quoted[1:-1])


@given(TEXT)
def test_every_argument_survives_quoting(text: str) -> None:
    assert read_back(quote(text)) == text


# Paths of a deployment file are printable: the file is refused otherwise.
PATHS = TEXT.filter(str.isprintable)


@given(PATHS, st.booleans())
def test_every_path_survives_the_mount_flag(path: str, read_only: bool) -> None:
    flag = Mount(path, "/target", read_only).flag()
    (fields,) = csv.reader(io.StringIO(flag, newline=""), strict=True)
    assert fields[:3] == ["type=bind", f"source={path}", "target=/target"]
    assert ("readonly" in fields) == read_only


def test_option_takes_the_last_value_in_either_form() -> None:
    assert option(("--host", "a", "--host=b"), "--host") == "b"
    assert option(("--hosts", "a"), "--host") is None
    assert option(("--host",), "--host") is None


def test_a_name_that_a_dead_docker_daemon_keeps_is_freed_before_the_start() -> None:
    """Without that: `endpoint with name … already exists in network host`, until somebody comes."""
    units = {
        engine: Unit("tiny", engine, f"/usr/bin/{engine}", "run", (), drain_timeout=5, restart_delay=1).render()
        for engine in ("docker", "podman")
    }
    lines = {engine: [row for row in unit.splitlines() if "ExecStartPre" in row] for engine, unit in units.items()}
    both = "/usr/bin/docker rm --force %N; /usr/bin/docker network disconnect --force host %N;"
    assert lines["docker"] == [f'ExecStartPre=-/bin/sh -c "{{ {both} }} >/dev/null 2>&1"']
    assert lines["podman"] == ['ExecStartPre=-/bin/sh -c "exec /usr/bin/podman rm --force %N >/dev/null 2>&1"']
