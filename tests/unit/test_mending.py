"""What `doctor --fix` would run."""

from __future__ import annotations

import re
from pathlib import Path

from sglang_ops import planning
from sglang_ops.commands.provision import Part
from sglang_ops.diagnosed import Host, Problem
from sglang_ops.mending import PART_OF, Mending, mendings
from sglang_ops.provisioned import PARTS


def host(name: str, *checks: str) -> Host:
    return Host(name, tuple(Problem(check, "seen", "do") for check in checks))


def test_hosts_that_need_the_same_are_mended_together() -> None:
    hosts = [host("a", "toolkit", "driver"), host("b", "driver", "cdi"), host("c", "engine"), host("d")]
    assert mendings(hosts) == (
        Mending(("a", "b"), ("driver", "engine"), ("toolkit", "driver", "cdi")),
        Mending(("c",), ("engine",), ("engine",)),
    )


def test_what_needs_a_person_is_left_to_one() -> None:
    assert mendings([host("a", "gpu-lost", "deployment", "ssh")]) == ()
    assert mendings([host("a", "gpu-lost", "engine")]) == (Mending(("a",), ("engine",), ("engine",)),)


def test_every_check_is_one_that_doctor_makes_and_every_part_one_that_provision_has() -> None:
    files = Path(planning.__file__).parent.glob("doctor_*.py")
    said = set(re.findall(r'"([a-z-]+)"', " ".join(path.read_text() for path in files)))
    assert set(PART_OF) <= said
    assert set(PART_OF.values()) <= set(PARTS)
    assert [part.value for part in Part] == list(PARTS)
