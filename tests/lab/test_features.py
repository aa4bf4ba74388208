"""`verify --features` over SSH: against the simulator, which can fail them, and against the real engine."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, Lab
from waiting import wait_until

pytestmark = pytest.mark.lab
QUICK = ("-e", "sglang_server_soak=0", "-e", "sglang_server_start_timeout=120")
ALL = ("--features", "json_schema,regex,vision")


@pytest.fixture(scope="module")
def lab(share_lab: Callable[..., Lab]) -> Lab:
    return share_lab(hosts=1)


def features(lab: Lab, *words: str) -> dict[str, tuple[bool, str]]:
    """What verify says of each feature; and that its verdict is that of its checks."""
    found = lab.json("verify", *(words or ALL))
    assert found["ok"] is all(check["ok"] for check in found["checks"])
    assert found["exit_code"] == (0 if found["ok"] else 1)
    asked = ("json_schema", "regex", "vision")
    return {check["name"]: (check["ok"], check["detail"]) for check in found["checks"] if check["name"] in asked}


def test_model_that_sees_shows_all_three(lab: Lab) -> None:
    assert lab.deploy(lab.write("sees", env_vars={"SGLANG_SIMULATOR_VISION": "1"}), *QUICK)["ok"]
    seen = features(lab)
    assert seen["json_schema"] == (True, 'as the schema says: {"fruit": "", "grams": 0, "colour": "red"}')
    assert seen["regex"] == (True, "matches [A-Z]{3}-[0-9]{4}: AAA-0000")
    assert seen["vision"][0]
    assert "This is the SGLang simulator" in seen["vision"][1]


def test_without_the_option_none_is_asked(lab: Lab) -> None:
    names = [check["name"] for check in lab.json("verify")["checks"]]
    assert "answer" in names
    assert not {"json_schema", "regex", "vision"} & set(names)


def test_plain_ansible_asks_them_too(lab: Lab) -> None:
    def play(names: str) -> subprocess.CompletedProcess[str]:
        playbook = [str(Path(sys.executable).with_name("ansible-playbook")), "playbooks/verify.yml", "-v"]
        variables = ["-i", str(lab.inventory), "-e", f'{{"sglang_health_features": {names}}}']
        return subprocess.run([*playbook, *variables], cwd=ROOT, capture_output=True, text=True, check=False)

    done = play('["regex"]')
    assert done.returncode == 0, done.stdout + done.stderr
    assert "AAA-0000" in done.stdout
    refused = play('["sight"]')
    assert refused.returncode != 0
    assert "json_schema, regex, vision" in refused.stdout


def test_server_that_ignores_the_form_fails_both_and_serves_all_the_same(lab: Lab) -> None:
    assert lab.deploy(lab.write("free", env_vars={"SGLANG_SIMULATOR_FAULT": "unconstrained"}), *QUICK)["ok"]
    assert lab.json("verify")["ok"]
    seen = features(lab)
    assert [ok for ok, _ in seen.values()] == [False, False, False]
    assert "it is no JSON: This is the SGLang simulator" in seen["json_schema"][1]
    assert "does not match [A-Z]{3}-[0-9]{4}" in seen["regex"][1]
    assert seen["vision"][1] == "tiny-llama takes no images (has_image_understanding is false)"
    assert lab.run("verify", "--features", "regex").returncode == 1


def test_service_that_does_not_answer_is_not_asked(lab: Lab) -> None:
    """The fault `garbage` passes no gate, so the running service is given it behind the tool's back."""
    name = lab.json("status")["services"][0]["name"]
    unit = f"/etc/systemd/system/{name}.service"
    lab.ssh(f"sed -i.kept s/FAULT=unconstrained/FAULT=garbage/ {unit} && systemctl daemon-reload")
    lab.ssh(f"systemctl restart {name}")
    wait_until(lambda: features(lab)["json_schema"][1] == "not asked, because answer failed", what="such an answer")
    lab.ssh(f"mv {unit}.kept {unit}; systemctl daemon-reload")


def test_unknown_feature_is_refused_before_a_host_is_asked(lab: Lab) -> None:
    refused = lab.run("verify", "--features", "json")
    assert refused.returncode == 7
    assert "'json' is not known" in refused.stderr
    assert "json_schema, regex, vision" in refused.stderr


# What the page's example needs changed to be served by the engine on a CPU, and nothing else.
FOR_THE_LAB = {
    "lmsysorg/sglang:latest": "{image}",
    "meta-llama/Llama-3.1-8B-Instruct": "{model}",
    "tensor_parallel_size: 4": "tensor_parallel_size: 1",
    '"0,1,2,3"': '"0"',
    "--mem-fraction-static 0.8": "--mem-fraction-static 0.2 --device cpu --attention-backend torch_native"
    " --model-impl transformers --max-total-tokens 20000 --max-running-requests 32 --sleep-on-idle",
}


@pytest.fixture(scope="module")
def real(make_lab: Callable[..., Lab]) -> Lab:
    """A lab with the real engine."""
    return make_lab("t-real", hosts=1, gpus=1, engine="docker", os="debian13", server="real")


@pytest.mark.slow
@pytest.mark.engine
def test_real_engine_serves_the_complete_example_of_the_page_and_answers_in_a_given_form(real: Lab) -> None:
    text = (ROOT / "examples" / "complete.yaml").read_text()
    own = real.deployment["deployment"]
    for old, new in FOR_THE_LAB.items():
        assert text.count(old) == 1
        text = text.replace(old, new.format(image=own["image"], model=own["hf_model_handle"]))
    path = real.folder / "example.yaml"
    path.write_text(text)
    result = real.deploy(path)
    assert result["ok"], result
    assert any("--disable-flashinfer" in warning for warning in result["warnings"])
    unit = real.ssh("cat /etc/systemd/system/sglang-llama-3-1-8b-instruct.service")
    assert "--disable-flashinfer" not in unit
    assert [unit.count(flag) for flag in ("--attention-backend torch_native", "--sampling-backend pytorch")] == [1, 1]
    seen = features(real)
    assert [seen[name][0] for name in ("json_schema", "regex", "vision")] == [True, True, False], seen
    assert seen["vision"][1] == "llama-3.1-8b-instruct takes no images (has_image_understanding is false)"
