"""Reading `nvidia-smi topo -m`, and choosing the GPUs that are joined best."""

from __future__ import annotations

import time
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from situations import deployed, deployment, host, planned
from waiting import at_most

from sglang_ops.planning import HostFacts, HostPlan, Settings, questions
from sglang_ops.planning.topology import best, joining, links, rank

# As an HGX host prints it: underlined header, network cards behind the GPUs, affinities of cores and memory.
HGX = """\
	\x1b[4mGPU0	GPU1	GPU2	NIC0	NIC1	CPU Affinity	NUMA Affinity	GPU NUMA ID\x1b[0m
GPU0	 X 	NV18	NV18	PXB	SYS	0-63,128-191	0		N/A
GPU1	NV18	 X 	NV18	NODE	SYS	0-63,128-191	0		N/A
GPU2	NV18	NV18	 X 	SYS	PXB	64-127,192-255	1		N/A
NIC0	PXB	NODE	SYS	 X 	SYS
NIC1	SYS	SYS	PXB	SYS	 X

Legend:

  X    = Self
  NV#  = Connection traversing a bonded set of # NVLinks

NIC Legend:

  NIC0: mlx5_0
  NIC1: mlx5_1
"""
# A workstation of an older driver: pairs bridged, names of cards in the header, spaces where a terminal put them.
BRIDGED = """\
        GPU0    GPU1    GPU2    GPU3    mlx5_0  CPU Affinity
GPU0     X      SYS     NV4     PHB     PIX     0-23
GPU1    SYS      X      PHB     NV4     SYS     24-47
GPU2    NV4     PHB      X      SYS     NODE    0-23
GPU3    PHB     NV4     SYS      X      SYS     24-47
mlx5_0  PIX     SYS     NODE    SYS      X
"""
CLASSES = ["NV18", "NV4", "NV1", "PIX", "PXB", "PHB", "NODE", "SYS", ""]


def islands(*groups: tuple[int, ...]) -> str:
    """A matrix in which NVLink joins the GPUs of each group and nothing else does."""
    everyone = sorted(gpu for group in groups for gpu in group)
    rows = [
        [" X " if one == two else "NV18" if any({one, two} <= set(group) for group in groups) else "SYS"
         for two in everyone]
        for one in everyone
    ]
    header = "\t".join(["", *(f"GPU{gpu}" for gpu in everyone), "CPU Affinity"])
    lines = ["\t".join([f"GPU{gpu}", *row, "0-63"]) for gpu, row in zip(everyone, rows, strict=True)]
    return "\n".join([header, *lines])


def test_matrix_of_a_host_with_network_cards() -> None:
    assert links(HGX) == {(0, 1): "NV18", (0, 2): "NV18", (1, 2): "NV18"}


def test_matrix_of_spaces() -> None:
    assert links(BRIDGED) == {
        (0, 1): "SYS", (0, 2): "NV4", (0, 3): "PHB", (1, 2): "PHB", (1, 3): "NV4", (2, 3): "SYS",
    }  # fmt: skip


def test_hidden_gpus_keep_their_numbers_and_cells_of_no_meaning_are_unknown() -> None:
    text = "\tGPU1\tGPU3\tGPU5\nGPU1\t X \tPIX\tN/A\nGPU3\tPIX\t X \tNV2\nGPU5\tN/A\tNV2\t X "
    assert links(text) == {(1, 3): "PIX", (3, 5): "NV2"}


@pytest.mark.parametrize("text", ["", "No devices were found\n", "Failed to initialize NVML: Unknown Error", "GPU0"])
def test_what_is_no_matrix_tells_nothing(text: str) -> None:
    assert links(text) == {}


@given(st.text(alphabet="GPU01 \tXNVSY\n\x1b[m", max_size=200))
def test_no_text_makes_it_fail(text: str) -> None:
    assert all(one < two for one, two in links(text))


def test_classes_are_ordered_as_the_legend_orders_them() -> None:
    assert sorted(CLASSES, key=rank, reverse=True) == CLASSES


@given(st.data(), st.integers(1, 7))
def test_best_is_what_trying_all_sets_finds(data: st.DataObject, present: int) -> None:
    known = {pair: data.draw(st.sampled_from(CLASSES)) for pair in combinations(range(present), 2)}
    count = data.draw(st.integers(1, present))

    def worst_first(gpus: tuple[int, ...]) -> list[int]:
        return sorted(rank(known[pair]) for pair in combinations(gpus, 2))

    assert best(range(present), count, known) == max(combinations(range(present), count), key=worst_first)


@pytest.mark.parametrize("size", [1, 2, 4, 16])
def test_sixteen_gpus_take_milliseconds(size: int) -> None:
    known = {pair: "NV4" if pair[0] // size == pair[1] // size else "SYS" for pair in combinations(range(16), 2)}
    start = time.perf_counter()
    assert best(range(16), 8, known) == tuple(range(8))
    assert time.perf_counter() - start < at_most(0.5)


def test_worst_link_names_the_set() -> None:
    known = links(BRIDGED)
    assert [joining(gpus, known) for gpus in ((0, 2), (3, 0), (0, 1, 2), (1,), (0, 4))] == ["NV4", "PHB", "SYS", "", ""]


def chosen(made: HostPlan) -> tuple[tuple[int, ...], str]:
    assert made.errors == ()
    return made.services[0].gpus, made.services[0].link


def test_free_gpus_that_are_joined_best_are_taken() -> None:
    wanted = deployment(tensor_parallel_size=2)
    assert chosen(planned(wanted, host(topology=islands((0, 2), (1, 3))))) == ((0, 2), "NV18")
    assert chosen(planned(wanted, host())) == ((0, 1), "")
    assert chosen(planned(deployment(), host(topology=islands((0, 2), (1, 3))))) == ((0,), "")
    other = {"name": "sglang-other", "release": "x", "record": {"gpus": [0], "port": 1}, "state": "active"}
    facts = host(topology=islands((0, 2), (1, 3)), services=[other])
    assert chosen(planned(wanted, facts)) == ((1, 3), "NV18")


def test_service_keeps_its_gpus_though_others_are_joined_better() -> None:
    wanted = deployment(tensor_parallel_size=2)
    first = planned(wanted, host())
    again = planned(wanted, host(topology=islands((0, 2), (1, 3)), services=[deployed(first)]))
    assert chosen(again) == ((0, 1), "SYS")
    assert again.services[0].action == "none"


@pytest.mark.parametrize(
    ("named", "busy", "says"),
    [
        ("0,1", [], "names GPU 0, 1, which only the system bus joins (SYS). GPU 0, 2 are free and joined by NV18"),
        ("3,1", [], ""),
        ("0,1", [2, 3], ""),
    ],
)
def test_named_gpus_are_taken_and_better_ones_named(named: str, busy: list[int], says: str) -> None:
    other = {"name": "sglang-other", "release": "x", "record": {"gpus": busy, "port": 1}, "state": "active"}
    facts = host(topology=islands((0, 2), (1, 3)), services=[other] if busy else [])
    made = planned(deployment(tensor_parallel_size=2, env_vars={"CUDA_VISIBLE_DEVICES": named}), facts)
    assert chosen(made)[0] == tuple(map(int, named.split(",")))
    told = [text for text in made.warnings if "system bus" in text]
    assert [says in text for text in told] == ([True] if says else [])


@pytest.mark.parametrize(
    ("changes", "asked"),
    [({}, False), ({"tensor_parallel_size": 2}, True), ({"data_parallel_size": 2}, True),
     ({"tensor_parallel_size": "auto"}, True)],
)
def test_hosts_are_asked_only_where_a_service_needs_several(changes: dict[str, Any], asked: bool) -> None:
    assert questions([deployment(**changes)], Settings(), [])["topology"] is asked


def test_facts_without_a_matrix_are_those_of_old() -> None:
    assert HostFacts.model_validate({"host": "h", "address": "h"}).topology == ""
