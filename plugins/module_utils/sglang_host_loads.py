"""What a service is doing right now, for `status`. Python 3.8, standard library."""

from __future__ import annotations

import json
import time

from ansible.module_utils import sglang_host_probe as probe


def of(record, properties, answers):
    """uptime_seconds, restarts, running, queued, tokens_per_second; None where it cannot be told."""
    entered = int(properties.get("ActiveEnterTimestampMonotonic") or 0)
    active = properties.get("ActiveState") == "active" and entered
    found = {
        "uptime_seconds": int(time.monotonic() - entered / 1e6) if active else None,
        "restarts": int(properties.get("NRestarts") or 0),
        "running": None,
        "queued": None,
        "tokens_per_second": None,
    }
    if answers and record and record.get("kind") != "gateway":
        found.update(now(record["gate"]))
    return found


def now(gate, timeout=10):
    """/v1/loads, SGLang 0.5.10 and later; one entry per data-parallel rank. {} where the server does not say."""
    try:
        status, text = probe.get(gate, "/v1/loads", timeout)
        ranks = json.loads(text)["loads"] if status == 200 else []
    except (OSError, ValueError, KeyError, TypeError):
        ranks = []
    if not ranks:
        return {}
    return {
        "running": sum(int(rank.get("num_running_reqs") or 0) for rank in ranks),
        "queued": sum(int(rank.get("num_waiting_reqs") or 0) for rank in ranks),
        "tokens_per_second": round(sum(float(rank.get("gen_throughput") or 0) for rank in ranks), 1),
    }
