"""Write the list of tasks of NVIDIA's evaluation packages: `python tools/nvidia_tasks.py SITE…`, one directory for each
environment in which nvidia-simple-evals or nvidia-lm-eval is installed.

Their containers are made of these packages; the images' names are those of the launcher's task table (0.2.6).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

TARGET = Path(__file__).parents[1] / "sglang_ops" / "evaluation" / "nvidia-26.3.json"
REGISTRY, TAG = "nvcr.io/nvidia/eval-factory", "26.03"
_EXTRA = ("args", "num_fewshot")  # keys that have no default, where the harness's command has them
KNOWN = {
    "simple_evals": ("simple_evals", "nvidia-simple-evals", "simple-evals"),
    "lm_evaluation_harness": ("lm-evaluation-harness", "nvidia-lm-eval", "lm-evaluation-harness"),
}


def main() -> None:
    found: dict[str, Any] = {}
    for site in map(Path, sys.argv[1:]):
        for package, (harness, distribution, image) in KNOWN.items():
            file = site / "core_evals" / package / "framework.yml"
            if not file.exists():
                continue
            content = yaml.safe_load(file.read_text())
            usual = content["defaults"]["config"]["params"]
            written = {word for word in _EXTRA if word in content["defaults"]["command"]}
            tasks = {
                one["defaults"]["config"]["type"]: _task(one["defaults"]["config"], usual)
                for one in content["evaluations"]
                if "chat" in one["defaults"]["config"]["supported_endpoint_types"]
            }
            found[harness] = {
                "distribution": distribution,
                "package": package,
                "image": f"{REGISTRY}/{image}:{TAG}",
                "extra": sorted({*usual["extra"], *written}),
                "tasks": tasks,
            }
            print(f"{harness}: {len(tasks)} tasks that ask by chat, of {len(content['evaluations'])}")
    TARGET.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


def _task(config: dict[str, Any], usual: dict[str, Any]) -> dict[str, Any]:
    """The parameters that differ from nothing, and whether a judge is asked."""
    params = {**usual, **(config.get("params") or {})}
    extra = {**usual.get("extra", {}), **params.pop("extra", {})}
    kept = ("max_new_tokens", "temperature", "top_p", "request_timeout")
    return {
        **{name: params[name] for name in kept if params.get(name) is not None},
        "repeats": extra.get("n_samples", 1),
        "judge": bool((extra.get("judge") or {}).get("api_key")),
    }


if __name__ == "__main__":
    main()
