"""What the server counts, in the Prometheus text format and under SGLang's names."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

from .generation import Scheduler

Labels = tuple[tuple[str, str], ...]


class Metrics:
    """Counters of requests and tokens, and gauges read from the scheduler when they are asked for."""

    def __init__(self, model_name: str, scheduler: Scheduler, *, token_capacity: int) -> None:
        self._model: Labels = (("engine_type", "unified"), ("model_name", model_name))
        self._scheduler = scheduler
        self.token_capacity = token_capacity
        self._counters: defaultdict[tuple[str, Labels], float] = defaultdict(float)

    def http_request(self, method: str, path: str) -> None:
        """A request came in."""
        self._counters["http_requests_total", (("endpoint", path), ("method", method))] += 1

    def http_response(self, method: str, path: str, status: int) -> None:
        """It was answered."""
        labels = (("endpoint", path), ("method", method), ("status_code", str(status)))
        self._counters["http_responses_total", labels] += 1

    def generated(self, *, prompt_tokens: int, completion_tokens: int, seconds: float, streamed: bool) -> None:
        """A generating request came to its end."""
        labels = (*self._model, ("is_streaming", str(streamed).lower()))
        for name, value in (
            ("num_requests_total", 1),
            ("prompt_tokens_total", prompt_tokens),
            ("generation_tokens_total", completion_tokens),
            ("e2e_request_latency_seconds_count", 1),
            ("e2e_request_latency_seconds_sum", seconds),
        ):
            self._counters[name, labels] += value

    def gauges(self) -> Mapping[str, float]:
        """The state of this moment, by SGLang's name."""
        used = self._scheduler.used_tokens
        return {
            "num_running_reqs": len(self._scheduler.running),
            "num_queue_reqs": self._scheduler.queued,
            "num_used_tokens": used,
            "max_total_num_tokens": self.token_capacity,
            "token_usage": min(1.0, used / self.token_capacity),
            "gen_throughput": round(self._scheduler.throughput(), 2),
            "cache_hit_rate": 0.0,
        }

    def text(self) -> str:
        """Everything, as Prometheus reads it."""
        return "".join(self._lines())

    def _lines(self) -> Iterator[str]:
        rank: Labels = (*self._model, ("pp_rank", "0"), ("tp_rank", "0"))
        for name, value in self.gauges().items():
            yield f"# TYPE sglang:{name} gauge\n"
            yield _sample(name, rank, value)
        for name in dict.fromkeys(name for name, _ in self._counters):
            if name.endswith("_total"):
                yield f"# TYPE sglang:{name} counter\n"
            for (counted, labels), value in self._counters.items():
                if counted == name:
                    yield _sample(name, labels, value)


def _sample(name: str, labels: Labels, value: float) -> str:
    written = ",".join('{}="{}"'.format(key, text.replace("\\", "\\\\").replace('"', '\\"')) for key, text in labels)
    return f"sglang:{name}{{{written}}} {float(value)}\n"
