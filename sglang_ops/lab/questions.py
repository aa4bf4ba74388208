"""The lab's data sets: a dozen items each of our own, in the schema of google/IFEval and of Idavidrein/gpqa."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

ITEMS = 12
DOMAINS = ("Physics", "Chemistry", "Biology")
_METALS = ("osmium", "gallium", "thulium", "yttrium")  # the first is right
# The least of NLTK's punkt_tab that splits sentences, for IFEval's scorer; published scores need the official data.
SENTENCES = {
    "tokenizers/punkt_tab/english/abbrev_types.txt": "dr\nmr\nmrs\ne.g\ni.e\n",
    "tokenizers/punkt_tab/english/collocations.tab": "",
    "tokenizers/punkt_tab/english/ortho_context.tab": "",
    "tokenizers/punkt_tab/english/sent_starters.txt": "",
}
IN_IMAGE = "/opt/nltk_data"  # of the lab's harness


def ifeval() -> str:
    """A file of google/IFEval's kind."""
    rows = [
        {
            "key": 1000 + number,
            "prompt": f"Lake {number:02d}: describe a lake in two sentences without any commas.",
            "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_sentences"],
            "kwargs": [{}, {"num_sentences": 2, "relation": "at least"}],
        }
        for number in range(ITEMS)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


def gpqa() -> str:
    """A file of Idavidrein/gpqa's kind."""
    out = io.StringIO()
    writer = csv.writer(out)
    answers = ["Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3"]
    writer.writerow(["Question", *answers, "High-level domain"])
    for number in range(ITEMS):
        words = [f"{metal} {number:02d}" for metal in _METALS]
        writer.writerow([f"Riddle {number:02d}: which metal is it?", *words, DOMAINS[number % 3]])
    return out.getvalue()


def write(directory: Path) -> None:
    """Write the data beside a lab's deployment file."""
    for name, text in (("ifeval/ifeval_input_data.jsonl", ifeval()), ("gpqa/gpqa_diamond.csv", gpqa())):
        path = directory / "evaluation" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def section() -> dict[str, Any]:
    """What the lab's deployment file says of them. The answers of a model of two layers need no more tokens."""
    return {
        "nemo_evaluator_config": {"config": {"params": {"max_new_tokens": 256}}},
        "env_vars": {"NLTK_DATA": IN_IMAGE},
        "tasks": [
            {"name": "gpqa_diamond", "dataset_dir": "evaluation/gpqa"},
            {"name": "ifeval", "dataset_dir": "evaluation/ifeval"},
        ],
    }
