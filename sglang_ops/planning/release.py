"""A release: the fully resolved content of a service, named by a short hash of that content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any


def release_id(content: Mapping[str, Any]) -> str:
    """12 hex digits; the same content is the same release on every host."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """What changed between two releases, in one line: `image 1a2b… → 3c4d…, --port 8000 → 9000, --x added`."""
    said: list[str] = []
    for key in sorted(new.keys() | old.keys(), key=lambda key: (key == "unit", key)):
        before, after = old.get(key), new.get(key)
        if before == after or (key == "unit" and said):
            continue  # the unit follows from the rest
        if key == "argv":
            said += _argument_changes(before or (), after or ())
        elif isinstance(before, dict | None) and isinstance(after, dict):
            changed = sorted(
                name for name in after.keys() | (before or {}).keys() if (before or {}).get(name) != after.get(name)
            )
            said.append(f"{key} {', '.join(changed)} changed")
        else:
            said.append(f"{key} {short(before)} → {short(after)}")
    return ", ".join(said) or "content changed"


def _argument_changes(before: Sequence[str], after: Sequence[str]) -> list[str]:
    old, new = _options(before), _options(after)
    changes = [
        f"{flag} {short(' '.join(old[flag]))} → {short(' '.join(new[flag]))}"
        for flag in new
        if flag in old and old[flag] != new[flag]
    ]
    changes += [f"{short(' '.join([flag, *old[flag]]))} removed" for flag in old if flag not in new]
    changes += [f"{short(' '.join([flag, *new[flag]]))} added" for flag in new if flag not in old]
    return changes or ["arguments reordered"]


def _options(argv: Sequence[str]) -> dict[str, list[str]]:
    """Values by flag; what stands before the first flag is under the first word."""
    found: dict[str, list[str]] = {}
    flag = None
    for word in argv:
        if flag is None or word.startswith("--"):
            flag = word
            found.setdefault(flag, [])
        else:
            found[flag].append(word)
    return found


def short(value: object) -> str:
    """A value as a line of a table can hold it: digests by their first 12 digits, long text cut."""
    text = " ".join(str(value).split())
    if "@sha256:" in text:
        name, _, digest = text.partition("@sha256:")
        return f"{name.rpartition('/')[2]}@{digest[:12]}"
    return text if len(text) <= 40 else f"{text[:37]}…"
