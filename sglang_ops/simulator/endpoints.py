"""The endpoints that tell about the server, with the keys that SGLang has, and the simulator's own name."""

from __future__ import annotations

import argparse
import datetime
import time
from collections.abc import Callable, Mapping
from typing import Any

from . import NAME, SGLANG_VERSION
from .generation import Scheduler
from .metrics import Metrics
from .model import Model
from .settings import Settings

_WEIGHT_GIB, _CACHE_GIB = 15.02, 110.58  # an 8B model on an H200, as the log says


class Information:
    """What `GET` on the informing endpoints answers, as JSON values."""

    def __init__(
        self, arguments: argparse.Namespace, model: Model, scheduler: Scheduler, metrics: Metrics, settings: Settings
    ) -> None:
        self._arguments = arguments
        self._model = model
        self._scheduler = scheduler
        self._metrics = metrics
        self._shown_name = "another/model" if settings.faults.wrong_model else arguments.served_model_name
        self._vision = settings.vision
        self._started = int(time.time())

        self._by_path: Mapping[str, Callable[[], dict[str, Any]]] = {
            "/v1/models": self._models,
            "/model_info": self._model_info,
            "/get_model_info": self._model_info,  # deprecated, as the other get_ name
            "/server_info": self._server_info,
            "/get_server_info": self._server_info,
            "/v1/loads": self._loads,
        }

    def answer(self, path: str) -> tuple[int, dict[str, Any]] | None:
        """Status and body of a GET; None where the path is not one of these."""
        if path in self._by_path:
            return 200, self._by_path[path]()
        root, _, name = path.partition("/v1/models/")
        if root or not name:
            return None
        card = self._model_card()
        if name == card["id"]:
            return 200, card
        message = f"The model '{name}' does not exist"
        error = {"message": message, "type": "invalid_request_error", "param": "model", "code": "model_not_found"}
        return 404, {"error": error}

    def _models(self) -> dict[str, Any]:
        return {"object": "list", "data": [self._model_card()]}

    def _model_card(self) -> dict[str, Any]:
        return {
            "id": self._shown_name,
            "object": "model",
            "created": self._started,
            "owned_by": NAME,
            "root": self._shown_name,
            "parent": None,
            "max_model_len": self._model.context_tokens,
        }

    def _model_info(self) -> dict[str, Any]:
        return {
            "model_path": self._model.path,
            "served_model_name": self._arguments.served_model_name,
            "tokenizer_path": self._arguments.tokenizer_path or self._model.path,
            "is_generation": True,
            "weight_version": "default",
            "has_image_understanding": self._vision,
            "has_audio_understanding": False,
            "model_type": self._model.model_type,
            "architectures": self._model.architectures,
            "simulator": NAME,
        }

    def _server_info(self) -> dict[str, Any]:
        """Every argument (with its secrets, as the engine has it) and the state of the scheduler."""
        state = {
            "effective_max_running_requests_per_dp": self._scheduler.most_running,
            "last_gen_throughput": self._scheduler.throughput(),
            "memory_usage": {
                "weight": _WEIGHT_GIB,
                "kvcache": _CACHE_GIB,
                "token_capacity": self._metrics.token_capacity,
            },
        }
        return {
            **vars(self._arguments),
            "simulator": NAME,
            "version": SGLANG_VERSION,
            "status": "ready",
            "max_total_num_tokens": self._metrics.token_capacity,
            "internal_states": [state] * self._arguments.dp_size,
        }

    def _loads(self) -> dict[str, Any]:
        """The load of each data-parallel rank. One scheduler does the work of all; the others show as idle."""
        now = datetime.datetime.now(datetime.UTC)
        gauges = self._metrics.gauges()
        busy = {
            "timestamp": now.timestamp(),
            "dp_rank": 0,
            "num_running_reqs": gauges["num_running_reqs"],
            "num_waiting_reqs": gauges["num_queue_reqs"],
            "num_used_tokens": gauges["num_used_tokens"],
            "max_total_num_tokens": self._metrics.token_capacity,
            "max_running_requests": self._scheduler.most_running,
            "token_usage": gauges["token_usage"],
            "gen_throughput": gauges["gen_throughput"],
            "cache_hit_rate": gauges["cache_hit_rate"],
            "memory": {
                "weight_gb": _WEIGHT_GIB,
                "kv_cache_gb": _CACHE_GIB,
                "token_capacity": self._metrics.token_capacity,
            },
            "queues": {"waiting": gauges["num_queue_reqs"], "paused": 0, "retracted": 0},
        }
        nothing = dict.fromkeys(("num_running_reqs", "num_waiting_reqs", "num_used_tokens"), 0)
        idle = [{**busy, **nothing, "dp_rank": rank} for rank in range(1, self._arguments.dp_size)]
        return {
            "timestamp": now.isoformat(),
            "version": SGLANG_VERSION,
            "accelerator": NAME,
            "num_accelerators": self._arguments.tp_size,
            "loads": [busy, *idle],
        }
