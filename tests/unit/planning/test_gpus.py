"""Which GPUs a service gets, and every way in which it cannot have them."""

from __future__ import annotations

import pytest
from situations import deployed, deployment, host, planned

from sglang_ops.planning import HostFacts


def gpus_of(made: object) -> tuple[int, ...]:
    assert made.errors == ()  # type: ignore[attr-defined]
    return tuple(made.services[0].gpus)  # type: ignore[attr-defined]


def test_lowest_free_gpus_are_taken() -> None:
    other = {"name": "sglang-other", "release": "x", "record": {"gpus": [0, 2], "port": 1}, "state": "active"}
    assert gpus_of(planned(deployment(tensor_parallel_size=2), host(services=[other]))) == (1, 3)


def test_service_keeps_the_gpus_it_has() -> None:
    wanted = deployment(tensor_parallel_size=2, env_vars={"CUDA_VISIBLE_DEVICES": "2,3"})
    first = planned(wanted, host())
    again = planned(deployment(tensor_parallel_size=2), host(services=[deployed(first)]))
    assert gpus_of(again) == (2, 3)


@pytest.mark.parametrize("named", ["3,1", "GPU-3,GPU-1", " 3 , 1 "])
def test_named_gpus_are_passed_exactly_and_renumbered_inside(named: str) -> None:
    made = planned(deployment(tensor_parallel_size=2, env_vars={"CUDA_VISIBLE_DEVICES": named}), host())
    assert gpus_of(made) == (3, 1)
    unit = made.services[0].unit
    assert "--device nvidia.com/gpu=3" in unit
    assert "--device nvidia.com/gpu=1" in unit
    assert "nvidia.com/gpu=0" not in unit
    assert "CUDA_VISIBLE_DEVICES" not in unit


@pytest.mark.parametrize(
    ("changes", "facts", "says"),
    [
        ({"tensor_parallel_size": 8}, {}, "needs 8 GPUs (tensor 8 × data 1), gpu-1 has 4 free of 4"),
        ({"tensor_parallel_size": 2, "data_parallel_size": 4}, {}, "needs 8 GPUs"),
        ({"env_vars": {"CUDA_VISIBLE_DEVICES": "7"}}, {}, "names GPU 7, but gpu-1 has GPU 0, 1, 2, 3"),
        ({"env_vars": {"CUDA_VISIBLE_DEVICES": "0,0"}}, {}, "names a GPU twice"),
        ({"tensor_parallel_size": 2, "env_vars": {"CUDA_VISIBLE_DEVICES": "0"}}, {}, "names 1 of 4"),
        ({}, {"gpus": 0, "gpu_error": "nvidia-smi is not installed"}, "nvidia-smi is not installed"),
    ],
)
def test_gpus_that_cannot_be_had(changes: dict[str, object], facts: dict[str, object], says: str) -> None:
    made = planned(deployment(**changes), host(**facts))
    assert says in made.errors[0].message


def test_gpu_of_another_service_is_refused_by_name() -> None:
    other = {"name": "sglang-other", "release": "x", "record": {"gpus": [1], "port": 1}, "state": "active"}
    made = planned(deployment(env_vars={"CUDA_VISIBLE_DEVICES": "1"}), host(services=[other]))
    assert "GPU 1 of gpu-1 is used by sglang-other" in made.errors[0].message


def test_gpu_with_foreign_memory_is_not_chosen_and_named() -> None:
    busy = [{"index": 0, "uuid": "GPU-0", "memory_used_mib": 40000}, {"index": 1, "uuid": "GPU-1"}]
    facts = HostFacts.model_validate(host(gpus=2).model_dump() | {"gpus": busy})
    assert gpus_of(planned(deployment(), facts)) == (1,)
    made = planned(deployment(tensor_parallel_size=2), facts)
    assert "GPU 0 has 40000 MiB in use by another process" in made.errors[0].message


def test_cpu_engine_needs_no_gpu_where_there_is_none() -> None:
    made = planned(deployment(extra_args="--device cpu"), host(gpus=0, gpu_error="nvidia-smi is not installed"))
    assert gpus_of(made) == ()
    assert "--device nvidia" not in made.services[0].unit
