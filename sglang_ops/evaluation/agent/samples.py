"""One line per item: what the harness scored, and what the proxy knows of the answer."""

from __future__ import annotations

import json
import math
import urllib.request
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from .proxy import prompt_digest
from .store import Answer

# Columns of data sets by which items are told apart; the first that a data set has is taken.
_CATEGORIES = ("category", "subject", "Subdomain", "High-level domain", "subtask", "domain", "type")


def lines(
    logged: Mapping[str, Sequence[Mapping[str, Any]]],
    repeat: int,
    answers: Sequence[Answer],
    host: str,
    without: Collection[str] = (),
) -> Iterator[dict[str, Any]]:
    """One line per item of a pass of lm_eval: the filters' scores put together, and what the proxy knows. The metrics
    `without` are left out."""
    (entries,) = logged.values()
    filters = {entry["filter"] for entry in entries}
    by_item: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for entry in entries:
        by_item[entry["doc_id"]].append(entry)
    rows = []
    for item, several in sorted(by_item.items()):
        first = several[0]
        question, prompt = asked(first["arguments"][0][0])
        rows.append(
            {
                "id": str(item),
                "repeat": repeat,
                "category": category(first["doc"]),
                "prompt": prompt,
                "expected": expected(first["target"]),
                "asked": [question],
                "text": str(first["resps"][0][0]),
                **scored(several, several_filters=len(filters) > 1, without=without),
            }
        )
    yield from joined(rows, answers, host)


def joined(rows: Iterable[Mapping[str, Any]], answers: Sequence[Answer], host: str) -> Iterator[dict[str, Any]]:
    """What a harness scored, with what the proxy knows of the answers: the lines of samples.jsonl.

    A row's `asked` are bodies of which one was asked, and `text` is the answer as the harness had it. What was asked
    in other words, which NVIDIA's interceptors can do, is told by its text; else nothing is known of it but the text.
    """
    rows = list(rows)
    found = _given(rows, answers)
    for row, answer in zip(rows, found, strict=True):
        yield {
            **{name: row[name] for name in ("id", "repeat", "category", "prompt", "expected", "scores", "weights")},
            "host": answer.host or host,
            "answer": answer.content,
            "reasoning": answer.reasoning,
            "failed": answer.failed,
            "finish_reason": answer.finish_reason,
            "latency_seconds": answer.latency,
            "prompt_tokens": _count(answer.usage.get("prompt_tokens")),
            "completion_tokens": _count(answer.usage.get("completion_tokens")),
            "attempts": answer.attempts,
        }


def begin(url: str) -> None:
    """Tell the proxy that a pass begins."""
    with urllib.request.urlopen(urllib.request.Request(f"{url}/begin", data=b"{}", method="POST")) as told:  # noqa: S310
        told.read()


def scored(
    entries: Sequence[Mapping[str, Any]], *, several_filters: bool, without: Collection[str] = ()
) -> dict[str, dict[str, float]]:
    scores, weights = {}, {}
    for entry in entries:
        for metric in (name for name in entry["metrics"] if name not in without):
            value, name = entry[metric], f"{metric},{entry['filter']}" if several_filters else str(metric)
            if isinstance(value, (list, tuple)) and value and all(isinstance(one, (bool, int, float)) for one in value):
                scores[name], weights[name] = sum(map(float, value)) / len(value), float(len(value))
            elif (isinstance(value, (bool, int, float)) or hasattr(value, "dtype")) and math.isfinite(value):
                scores[name] = float(value)  # nan: the harness leaves the item out of the mean
    return {"scores": scores, "weights": weights}


def asked(text: Any) -> tuple[dict[str, Any], str]:
    """What was asked: as the request had it, and as people read it."""
    text = str(getattr(text, "prompt", text))
    try:
        messages = json.loads(text)
    except ValueError:
        messages = None
    if not isinstance(messages, list):
        return {"prompt": text}, text
    if len(messages) == 1:
        return {"messages": messages}, str(messages[0].get("content"))
    return {"messages": messages}, "\n\n".join(f"{one.get('role')}: {one.get('content')}" for one in messages)


def _given(rows: Sequence[Mapping[str, Any]], answers: Sequence[Answer]) -> list[Answer]:
    """The answer of each row, each given once. One prompt may be several items', so the text decides among them."""
    by_prompt: dict[str, list[Answer]] = defaultdict(list)
    for answer in answers:
        by_prompt[answer.prompt].append(answer)
    found: list[Answer | None] = []
    for row in rows:
        digests = map(prompt_digest, row["asked"])
        several = next((by_prompt[digest] for digest in digests if by_prompt.get(digest)), [])
        chosen = next((answer for answer in several if _text(answer) == row["text"]), several[0] if several else None)
        if chosen:
            several.remove(chosen)
        found.append(chosen)
    by_text: dict[str, list[Answer]] = defaultdict(list)
    for answer in (answer for left in by_prompt.values() for answer in left):
        by_text[_text(answer)].append(answer)
    return [
        answer or (by_text[row["text"]].pop(0) if by_text[row["text"]] else _only_text(row["text"]))
        for row, answer in zip(rows, found, strict=True)
    ]


def _text(answer: Answer) -> str:
    return answer.content or ""


def _only_text(text: str) -> Answer:
    return Answer(response={"choices": [{"message": {"content": text}}]})


def category(doc: Mapping[str, Any]) -> str | None:
    named = next((str(doc[key]) for key in _CATEGORIES if isinstance(doc.get(key), str) and doc[key]), None)
    kinds = doc.get("instruction_id_list")
    return named or (str(kinds[0]).partition(":")[0] if kinds else None)


def expected(target: Any) -> str | None:
    return None if target in (None, 0, "") else str(target)


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) else None
