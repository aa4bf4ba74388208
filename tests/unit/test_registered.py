"""Filters read what hosts have registered without putting all their variables together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sglang_ops.registered import Registered, cheaply


class Manager:
    _nonpersistent_fact_cache = {"gpu-1": {"told": 1}}  # noqa: RUF012


class HostVars(Mapping[str, Any]):
    """As Ansible's: to look at a host is what costs."""

    _variable_manager: Any = Manager()
    looked = 0

    def __getitem__(self, name: str) -> Any:
        self.looked += 1
        return {"told": 1, "inventory_hostname": name}

    def __iter__(self) -> Iterator[str]:
        return iter(["gpu-1", "gpu-2"])

    def __len__(self) -> int:
        return 2


def told(names: list[str], hostvars: Mapping[str, Any]) -> list[Any]:
    return [hostvars[name].get("told") for name in names]


def test_results_come_from_where_ansible_keeps_them() -> None:
    hostvars = HostVars()
    assert cheaply({"told": told})["told"](["gpu-1", "gpu-2"], hostvars) == [1, None]
    assert hostvars.looked == 0
    assert list(Registered(hostvars)) == ["gpu-1", "gpu-2"]


def test_an_ansible_that_keeps_them_elsewhere_is_asked_as_always() -> None:
    hostvars = HostVars()
    hostvars._variable_manager = object()
    assert Registered(hostvars)["gpu-2"]["told"] == 1
    assert cheaply({"told": told})["told"](["a"], {"a": {"told": 2}}) == [2]
