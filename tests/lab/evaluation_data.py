"""Tasks beside those of the lab, and what the scripted answer server says to all of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from sglang_ops.lab.questions import DOMAINS, ITEMS, SENTENCES, gpqa, ifeval

__all__ = ["DOMAINS", "answers", "evaluation", "write"]

RIGHT_IFEVAL, RIGHT_GPQA = 9, 6
VERSE = "the water of the lake lies still under the moon of number"


def own_task(name: str, rows: dict[str, str], *metrics: tuple[str, str]) -> dict[str, str]:
    """A task of the user's: its definition and its data, which are questions with their answers."""
    definition = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": f"{name}.jsonl"}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": [], "max_gen_toks": 64},
        "metric_list": [
            {"metric": metric, "aggregation": aggregation, "higher_is_better": True}
            for metric, aggregation in metrics or [("exact_match", "mean")]
        ],
    }
    lines = [json.dumps({"question": question, "answer": answer}) + "\n" for question, answer in rows.items()]
    return {f"{name}.yaml": yaml.safe_dump(definition), f"{name}.jsonl": "".join(lines)}


def answers(seconds: float = 0.0) -> str:
    """ifeval 9 of 12, gpqa 6 of 12, capitals 4 of 4, rivers 0 of 4: one refused for good, one null, one only reasoned;
    each of the four verses is worse than the one before.

    One capital is answered at the third attempt."""
    lines: list[dict[str, Any]] = []
    for number in range(ITEMS):
        text = "A calm lake. It shines." if number < RIGHT_IFEVAL else "A calm, wide lake. It shines."
        metal = "osmium" if number < RIGHT_GPQA else "gallium"
        lines.append({"contains": f"Lake {number:02d}:", "answer": text, "seconds": seconds})
        lines.append(
            {"contains": f"Riddle {number:02d}:", "answer": f"It is {metal} {number:02d}.", "seconds": seconds}
        )
    lines += [{"contains": f"Verse {n}", "answer": " ".join(VERSE.split()[n:] + ["one"] * n)} for n in range(4)]
    lines += [{"contains": f"Capital {number}", "answer": "yes"} for number in range(1, 4)]
    lines.append({"contains": "Capital 0", "answer": "yes", "status": 500, "times": 2})
    lines += [
        {"contains": "River 0", "status": 400},
        {"contains": "River 1", "answer": None},
        {"contains": "River 2", "answer": None, "reasoning": "It flows."},
        {"contains": "River 3", "answer": "no"},
    ]
    return "".join(json.dumps(line) + "\n" for line in lines)


def write(directory: Path) -> None:
    """Data beside a deployment file; `srv` is for hosts, `hand` the same as the harness itself wants it."""
    head = "---\nconfigs:\n- config_name: {}\n  data_files:\n  - {{split: train, path: {}}}\n---\n"
    files = {
        "ifeval_data/ifeval_input_data.jsonl": ifeval(),
        "gpqa_data/gpqa_diamond.csv": gpqa(),
        "hand/google/IFEval/train.jsonl": ifeval(),
        "hand/Idavidrein/gpqa/gpqa_diamond.csv": gpqa(),
        "hand/google/IFEval/README.md": head.format("default", "train.jsonl"),
        "hand/Idavidrein/gpqa/README.md": head.format("gpqa_diamond", "gpqa_diamond.csv"),
        **{
            f"{name}/{file}": text
            for name, rows, metrics in (
                ("capitals", {f"Capital {n}?": "yes" for n in range(4)}, ()),
                ("rivers", {f"River {n}?": "yes" for n in range(4)}, ()),
                ("verses", {f"Verse {n}?": VERSE for n in range(4)}, [("bleu", "bleu"), ("chrf", "chrf")]),
            )
            for file, text in own_task(name, rows, *metrics).items()
        },
        **{f"srv/nltk/{name}": text for name, text in SENTENCES.items()},
        "srv/answers/answers.jsonl": answers(),
        "srv/answers/slow.jsonl": answers(seconds=3.0),
        "srv/answers/slower.jsonl": answers(seconds=10.0),
        "srv/answers/slowest.jsonl": answers(seconds=30.0),
    }
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def evaluation(parallelism: int = 4) -> dict[str, Any]:
    """The sections of a deployment file that evaluate all four tasks."""
    return {
        "execution": {"output_dir": "results", "mounts": {"evaluation": {"/srv/nltk": "/nltk:ro"}}},
        "evaluation": {
            "nemo_evaluator_config": {"config": {"params": {"parallelism": parallelism, "max_retries": 3}}},
            "env_vars": {"NLTK_DATA": "/nltk", "HF_TOKEN": "host:LAB_EVALUATION_CANARY"},
            "tasks": [
                {"name": "ifeval", "dataset_dir": "ifeval_data"},
                {"name": "gpqa_diamond", "dataset_dir": "gpqa_data",
                 "nemo_evaluator_config": {"config": {"params": {"max_new_tokens": 512}}}},
                {"name": "capitals", "dataset_dir": "capitals"},
                {"name": "rivers", "dataset_dir": "rivers"},
            ],
        },
    }  # fmt: skip
