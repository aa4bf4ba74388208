"""From the deployment file's `evaluation:` to what hosts are told: names, parameters, data, unit."""

from __future__ import annotations

import subprocess
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import yaml

from sglang_ops import spec
from sglang_ops.errors import UsageError
from sglang_ops.evaluation import data, harness, parameters, run, tasks
from sglang_ops.planning.command import Mount

SERVER = {"served_model_name": "tiny", "hf_model_handle": "lab/tiny-llama", "image": "r.example/sglang:v0.5.23"}


def loaded(tmp_path: Path, evaluation: dict[str, Any], **more: Any) -> spec.DeploymentFile:
    path = tmp_path / "deployment.yaml"
    path.write_text(yaml.safe_dump({"deployment": SERVER, "evaluation": evaluation, **more}))
    return spec.load(path)


def work(tmp_path: Path, evaluation: dict[str, Any], **options: Any) -> run.Work:
    more = options.pop("more", {})
    file = loaded(tmp_path, evaluation, **more)
    return run.work(file, file.deployment, run="r", base=tmp_path, **options)


def test_the_pages_tasks_are_the_launchers_with_its_parameters(tmp_path: Path) -> None:
    made = work(tmp_path, {"tasks": [{"name": "gpqa_diamond"}, {"name": "ifeval"}]})
    gpqa, ifeval = made.job["tasks"]
    assert gpqa["harness_task"] == "gpqa_diamond_cot_zeroshot"
    assert gpqa["generation"] == {"temperature": 0.0, "top_p": 1e-5, "max_gen_toks": 16384}
    assert (gpqa["request_timeout"], gpqa["max_retries"], gpqa["usual"]) == (60, 5, True)
    assert ifeval["generation"] == {"temperature": 1e-7, "top_p": 0.9999999}
    assert made.job["deployment"] == "sglang-tiny"
    assert any("simple_evals.gpqa_diamond" in line for line in made.said), "an ambiguous name is said to be one"
    assert not made.job["offline"]


def test_every_parameter_reaches_the_harness_and_a_tasks_own_wins(tmp_path: Path) -> None:
    common = {
        "limit_samples": 5,
        "parallelism": 3,
        "request_timeout": 7,
        "max_retries": 1,
        "temperature": 0.5,
        "top_p": 0.9,
    }
    extra = {"n_samples": 4, "num_fewshot": 2, "seed": 9, "system_instruction": "Brief.", "gen_kwargs": {"min_p": 0.1}}
    own = {"max_new_tokens": 99, "temperature": 0.7, "extra": extra}
    made = work(
        tmp_path,
        {
            "nemo_evaluator_config": {"config": {"params": common}},
            "pre_cmd": "a",
            "tasks": [
                {
                    "name": "ifeval",
                    "nemo_evaluator_config": {"config": {"params": own}},
                    "pre_cmd": "b",
                    "post_cmd": "c",
                }
            ],
        },
    )
    (task,) = made.job["tasks"]
    assert task["generation"] == {"temperature": 0.7, "top_p": 0.9, "max_gen_toks": 99, "min_p": 0.1}
    picked = (
        "limit",
        "parallelism",
        "request_timeout",
        "max_retries",
        "repeats",
        "num_fewshot",
        "seed",
        "system_instruction",
    )
    assert [task[key] for key in picked] == [5, 3, 7, 1, 4, 2, 9, "Brief."]
    assert (task["pre_cmd"], task["post_cmd"], task["usual"]) == (["a", "b"], ["c"], False)
    assert work(tmp_path, {"tasks": [{"name": "ifeval"}]}, limit=3).job["tasks"][0]["limit"] == 3


@pytest.mark.parametrize(
    ("params", "told"),
    [
        ({"paralelism": 3}, "params.paralelism: there is no such parameter"),
        ({"parallelism": 0}, "params.parallelism: 0 must be greater than or equal to 1"),
        ({"limit_samples": "ten"}, "params.limit_samples: 'ten' must be a valid integer"),
        ({"temperature": -1}, "params.temperature: -1 must be greater than or equal to 0"),
        ({"top_p": 1.5}, "params.top_p: 1.5 must be less than or equal to 1"),
        ({"extra": {"tokenizer": "x"}}, "params.extra.tokenizer: there is no such parameter"),
    ],
)
def test_wrong_parameters_are_named(params: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError) as caught:
        parameters.read({"config": {"params": params}}, where="evaluation.tasks.0")
    assert told in caught.value.message
    assert caught.value.exit_code == 7


@pytest.mark.parametrize(
    ("name", "told", "fix"),
    [
        ("ifevall", "there is no task 'ifevall'", "'ifeval'"),
        ("codec.gpqa_diamond", "belongs to codec", "Write 'gpqa_diamond'"),
        ("simple_evals.gpqa_diamon", "no task 'gpqa_diamon' in NVIDIA's simple_evals", "'gpqa_diamond'"),
        ("mmlu_redux_instruct", "only NVIDIA's lm-evaluation-harness has", "evaluation.harness: nvidia"),
        ("mmlu", "needs probabilities of given answers", "evaluate tasks"),
        ("zzzzzz", "there is no task 'zzzzzz'", "evaluate tasks"),
    ],
)
def test_names_that_cannot_be_run_come_with_the_nearest(name: str, told: str, fix: str) -> None:
    with pytest.raises(UsageError) as caught:
        tasks.find(name)
    assert told in caught.value.message
    assert fix in str(caught.value.fix)


def test_tasks_of_the_harness_are_known_with_their_data() -> None:
    listed = {task.name: task for task in tasks.known() if not task.nvidia}
    assert listed["gsm8k"].dataset == "openai/gsm8k"
    assert listed["gpqa_diamond"].gated
    assert [task.name for task in tasks.known()][:2] == ["gpqa_diamond", "ifeval"]
    assert tasks.find("lm-evaluation-harness.ifeval") == (listed["ifeval"], None)
    assert tasks.find("ours", own=True)[0].harness_task == "ours"
    theirs = {(task.nvidia.harness, task.name): task for task in tasks.known() if task.nvidia}
    assert theirs["simple_evals", "gpqa_diamond"].gated
    assert "a judge" in theirs["simple_evals", "simpleqa"].needs or theirs["simple_evals", "AIME_2025"].needs
    assert theirs["lm-evaluation-harness", "ifeval"].primary == "prompt_level_strict_acc"


def test_data_beside_the_file_goes_along_and_data_of_the_host_is_mounted(tmp_path: Path) -> None:
    (tmp_path / "own" / "more").mkdir(parents=True)
    (tmp_path / "own" / ".git").mkdir()
    for name in ("test.jsonl", "more/few.jsonl", ".git/config"):
        (tmp_path / "own" / name).write_text("{}")
    made = work(
        tmp_path, {"tasks": [{"name": "ours", "dataset_dir": "own"}, {"name": "ifeval", "dataset_dir": "/srv/if"}]}
    )
    names = ("test.jsonl", "more/few.jsonl")
    assert made.files == {f"data/ours/{name}": tmp_path / "own" / name for name in names}
    assert Mount("/srv/if", "/evaluation/data/ifeval", read_only=True) in made.mounts
    assert made.job["offline"], "no network is needed where all data is local"
    with pytest.raises(UsageError, match="dataset_dir none is no directory"):
        work(tmp_path, {"tasks": [{"name": "ifeval", "dataset_dir": "none"}]})
    (tmp_path / "second").mkdir()
    for folder in ("own", "second"):
        with (tmp_path / folder / "big.jsonl").open("wb") as big:
            big.truncate(data.MOST_CARRIED * 2 // 3)
    assert work(tmp_path, {"tasks": [{"name": "ours", "dataset_dir": "own"}]}).files
    both = [{"name": "ours", "dataset_dir": "own"}, {"name": "ifeval", "dataset_dir": "second"}]
    with pytest.raises(UsageError, match=r"hold 22 MB, most of it .*; 17 MB can go along with a run"):
        work(tmp_path, {"tasks": both})


def test_what_cannot_be_a_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="No task is named"):
        work(tmp_path, {})
    with pytest.raises(UsageError, match="ifeval is there twice"):
        work(tmp_path, {"tasks": [{"name": "ifeval"}, {"name": "ifeval"}]})
    with pytest.raises(UsageError, match="neither chat nor completions"):
        work(tmp_path, {"tasks": [{"name": "ifeval", "endpoint_type": "vlm"}]})
    monkeypatch.delenv("NO_SUCH_TOKEN", raising=False)
    with pytest.raises(UsageError, match="NO_SUCH_TOKEN is not set"):
        work(tmp_path, {"tasks": [{"name": "ifeval"}], "env_vars": {"HF_TOKEN": "host:NO_SUCH_TOKEN"}})
    with pytest.raises(UsageError, match="cannot be called"):
        run.check_name("No Good")
    with pytest.raises(UsageError, match="NVIDIA's containers ask by chat"):
        work(tmp_path, {"tasks": [{"name": "simple_evals.mgsm", "endpoint_type": "completions"}]})
    params = {"config": {"params": {"extra": {"num_fewshot": 1}}}}
    with pytest.raises(UsageError, match=r"extra\.num_fewshot: there is no such parameter"):
        work(tmp_path, {"tasks": [{"name": "simple_evals.mgsm", "nemo_evaluator_config": params}]})
    with pytest.raises(spec.SpecErrors, match="no harness of NVIDIA's"):
        work(tmp_path, {"tasks": [{"name": "ifeval"}], "nvidia_images": {"codec": "x"}})


def test_the_image_is_the_files_and_tasks_can_be_chosen(tmp_path: Path) -> None:
    section = {
        "harness_image": "r.example/lm:1",
        "tasks": [{"name": "ifeval"}, {"name": "lm-evaluation-harness.gsm8k"}],
    }
    assert work(tmp_path, section).images == ("r.example/lm:1",)
    assert [task["name"] for task in work(tmp_path, section, only=["gsm8k"]).job["tasks"]] == ["gsm8k"]
    assert [task["name"] for task in work(tmp_path, section, only=["aime24"]).job["tasks"]] == ["aime24"]
    own = {"tasks": [{"name": "ifeval", "container": "r.example/own:1"}]}
    assert work(tmp_path, own).images == ("r.example/own:1",)


def test_a_gated_data_set_without_a_token_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "t")
    gated = {"tasks": [{"name": "gpqa_diamond"}]}
    told = "is gated, and there is no HF_TOKEN in evaluation.env_vars"
    assert any(told in line for line in work(tmp_path, gated).said)
    assert not any(told in line for line in work(tmp_path, gated | {"env_vars": {"HF_TOKEN": "host:HF_TOKEN"}}).said)
    assert not any(told in line for line in work(tmp_path, {"tasks": [{"name": "ifeval"}]}).said)


def test_secrets_are_read_where_the_operator_is_and_stand_in_no_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_TOKEN", "canary")
    section = {
        "env_vars": {
            "HF_TOKEN": "host:MY_TOKEN",
            "NLTK_DATA": "/nltk",
            "OPENAI_API_KEY": "host:MY_TOKEN",
            "X": "runtime:Y",
        },
        "tasks": [{"name": "ifeval", "env_vars": {"ONLY": "here"}}],
    }
    file = loaded(tmp_path, section, execution={"env_vars": {"evaluation": {"NLTK_DATA": "/other"}}})
    told = run.environment(file, file.deployment, tmp_path)
    assert told["environment"] == {"HF_TOKEN": "canary", "NLTK_DATA": "/other"}
    assert (told["api_key"], told["tasks"], told["runtime"]) == ("canary", {"ifeval": {"ONLY": "here"}}, {"X": "Y"})
    made = run.work(file, file.deployment, run="r", base=tmp_path)
    assert "canary" not in str(made.variables())
    assert run.secret_values(file) == {"canary"}


def test_every_place_of_the_environment_is_checked_and_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`execution.env_vars.evaluation` and the file's own env_vars reach the harness like evaluation.env_vars."""
    for name in ("UPPER", "OLDER", "OF_TASK"):
        monkeypatch.setenv(name, f"canary-{name}")
    task = {"name": "ifeval", "env_vars": {"THIRD_TOKEN": "host:OF_TASK"}}
    older = {"env_vars": {"evaluation": {"SECOND_TOKEN": "host:OLDER"}}}
    section = {"tasks": [task], "env_vars": {"KEPT_TOKEN": "runtime:THEIRS"}}
    more = {"env_vars": {"FIRST_TOKEN": "host:UPPER"}, "execution": older}
    hidden = {"canary-UPPER", "canary-OLDER", "canary-OF_TASK"}
    assert run.secret_values(loaded(tmp_path, section, **more)) == hidden, "the name of a host's variable is no secret"
    for name in ("UPPER", "OLDER", "OF_TASK"):
        with monkeypatch.context() as patched:
            patched.delenv(name)
            with pytest.raises(UsageError, match=f"the variable {name} is not set here"):
                work(tmp_path, section, more=more)


def test_a_hosts_variable_for_one_task_is_refused_as_it_would_be_lost(tmp_path: Path) -> None:
    task = {"name": "gpqa_diamond", "env_vars": {"HF_TOKEN": "runtime:HF_TOKEN"}}
    with pytest.raises(UsageError, match=r"gpqa_diamond\)\.env_vars\.HF_TOKEN is a variable of the hosts"):
        work(tmp_path, {"tasks": [task]})


def test_the_unit_goes_on_after_a_reboot_and_never_starts_a_run_that_is_over() -> None:
    made = harness.Container(
        run="r1", service="sglang-tiny", images=["r.example/lm@sha256:" + "0" * 64], engine="docker",
        hf_home="/data/hf", environment={"HF_HUB_OFFLINE": "1"}, mounts=[Mount("/srv/a,b", "/nltk", read_only=True)],
    )  # fmt: skip
    text = made.unit()
    assert made.unit_name == "sglang-tiny-evaluation-r1"
    assert "ConditionPathExists=!/var/lib/sglang-ops/evaluations/r1/finished" in text
    assert "Restart=on-failure" in text
    assert "WantedBy=multi-user.target" in text
    assert "--pull never" in text
    assert "--mount type=bind,source=/data/hf,target=/cache/huggingface" in text
    assert r'--mount "type=bind,\"source=/srv/a,b\",target=/nltk,readonly"' in text
    assert "podman has no daemon" in harness.Container(**{**vars(made), "engine": "podman"}).unit()


def test_the_program_is_one_file_with_the_same_bytes_each_time() -> None:
    packed = harness.program()
    assert packed == harness.program()
    names = zipfile.ZipFile(BytesIO(packed)).namelist()
    assert {"__main__.py", "sglang_ops_agent/proxy.py", "sglang_ops_agent/lmeval.py"} <= set(names)


GPQA, IFEVAL = (
    "nvcr.io/nvidia/eval-factory/simple-evals:26.03",
    "nvcr.io/nvidia/eval-factory/lm-evaluation-harness:26.03",
)


@pytest.mark.parametrize(
    ("section", "images", "harnesses"),
    [
        ({}, (None,), (None, None)),
        ({"harness": "nvidia"}, (GPQA, IFEVAL), ("nvidia-simple-evals", "nvidia-lm-eval")),
        ({"nvidia_images": {"simple_evals": "r/own:1"}}, ("r/own:1", None), ("nvidia-simple-evals", None)),
        ({"harness_image": "r/lm:1", "nvidia_images": {"lm-evaluation-harness": "r/own:1"}}, ("r/lm:1", "r/own:1"),
         (None, "nvidia-lm-eval")),
    ],
)  # fmt: skip
def test_nvidias_containers_run_what_the_file_gives_them(
    tmp_path: Path, section: dict[str, Any], images: tuple[Any, ...], harnesses: tuple[Any, ...]
) -> None:
    """The launcher's names, its images where the file names none, and for each task the stage with its image."""
    made = work(tmp_path, section | {"tasks": [{"name": "gpqa_diamond"}, {"name": "ifeval"}]})
    items = made.job["tasks"]
    assert made.images == images
    assert tuple(item["nvidia"] and item["nvidia"]["distribution"] for item in items) == harnesses
    assert [item["stage"] for item in items] == [0, len(images) - 1]
    assert any("the launcher also knows" in line for line in made.said)
    assert all("the launcher also knows" not in line or "codec" in line for line in made.said)


def test_a_name_with_its_harness_and_a_container_of_nvidias_are_choices_too(tmp_path: Path) -> None:
    assert work(tmp_path, {"tasks": [{"name": "simple_evals.gpqa_diamond"}]}).images == (GPQA,)
    container = "r.example/mirror/eval-factory/simple-evals@sha256:" + "0" * 64
    assert work(tmp_path, {"tasks": [{"name": "gpqa_diamond", "container": container}]}).images == (container,)
    (task,) = work(tmp_path, {"tasks": [{"name": "gpqa_diamond", "container": container}]}).job["tasks"]
    assert task["nvidia"]["data"] == ("Idavidrein/gpqa", "gpqa_diamond", "train")
    assert (task["harness_task"], task["primary"], task["repeats"]) == ("gpqa_diamond", "score", 1)
    assert task["generation"] == {"temperature": 0, "top_p": 1e-5, "max_gen_toks": 16384}


def test_a_run_of_several_images_checks_all_tasks_before_it_asks_any() -> None:
    made = harness.Container(
        run="r1", service="sglang-tiny", images=["a@sha256:1", "b@sha256:2"], engine="docker", hf_home="/data/hf",
        environment={"X": "it's"},
    )  # fmt: skip
    assert "ExecStart=/bin/sh /var/lib/sglang-ops/evaluations/r1/containers.sh" in made.unit()
    assert "KillMode=control-group" in made.unit(), "the engine's client stops its container"
    script = made.script() or ""
    order = [line.split(maxsplit=1)[1] for line in script.splitlines() if line.startswith("container ")]
    assert order == ["a@sha256:1 check 0", "b@sha256:2 check 1", "a@sha256:1 run 0", "b@sha256:2 run 1"]
    assert "--pull never" in script
    assert subprocess.run(["/bin/sh", "-n"], input=script, text=True, check=False).returncode == 0
    assert harness.Container(**{**vars(made), "images": ["a"]}).script() is None
