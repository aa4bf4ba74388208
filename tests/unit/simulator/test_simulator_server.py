"""The HTTP surface: readiness, information, answers, streams, keys, limits."""

from __future__ import annotations

import concurrent.futures
import json
import socket
import time
from pathlib import Path

import httpx
import openai
import pytest
from simulators import Simulator, Start

CHAT = {"model": "x", "messages": [{"role": "user", "content": "What is the capital of France?"}]}
IMAGE = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
SENTENCE = "This is the SGLang simulator: no model was run, and every answer is this one."


def test_readiness_goes_from_refused_over_503_to_200(start: Start) -> None:
    simulator = start(SGLANG_SIMULATOR_STARTUP_SECONDS="2")
    with pytest.raises(httpx.ConnectError):
        simulator.get("/health")
    simulator.wait_until_open()
    assert [simulator.get(path).status_code for path in ("/health", "/health_generate", "/ready")] == [503, 503, 503]
    assert simulator.get("/v1/models").status_code == 200
    simulator.wait_until_ready()
    begun = time.monotonic()
    assert simulator.get("/health").status_code == 200
    assert time.monotonic() - begun >= 1.0
    simulator.terminate()
    lines = simulator.log().splitlines()
    assert "This is the SGLang simulator, not SGLang" in lines[0]
    milestones = (
        "server_args={'model_path': ",
        "Load weight begin. avail mem=",
        "Load weight end. type=LlamaForCausalLM",
        "KV Cache is allocated.",
        "Capture cuda graph begin.",
        "Uvicorn running on http://127.0.0.1:",
        "The server is fired up and ready to roll!",
    )
    found = [next(at for at, line in enumerate(lines) if milestone in line) for milestone in milestones]
    assert found == sorted(found)


def test_information_names_the_model_and_the_simulator(simulator: Simulator, model: Path) -> None:
    (card,) = simulator.get("/v1/models").json()["data"]
    assert (card["id"], card["owned_by"], card["max_model_len"]) == ("lab", "sglang-simulator", 4096)
    assert simulator.get("/v1/models/lab").json()["id"] == "lab"
    assert simulator.get("/v1/models/other").json()["error"]["code"] == "model_not_found"
    for path in ("/model_info", "/get_model_info"):
        information = simulator.get(path).json()
        assert (information["model_path"], information["simulator"]) == (str(model), "sglang-simulator")
    for path in ("/server_info", "/get_server_info"):
        information = simulator.get(path).json()
        assert (information["version"], information["simulator"]) == ("0.5.23", "sglang-simulator")
        assert (information["tp_size"], information["enable_metrics"]) == (1, False)
    assert simulator.get("/ping").headers["server"] == "sglang-simulator"


def test_loads_has_an_entry_per_rank(start: Start) -> None:
    simulator = start("--dp", "2", "--max-running-requests", "7").wait_until_ready()
    loads = simulator.get("/v1/loads").json()["loads"]
    assert [(load["dp_rank"], load["num_running_reqs"], load["max_running_requests"]) for load in loads] == [
        (0, 0, 7),
        (1, 0, 7),
    ]


@pytest.mark.parametrize("path", ["/get_load", "/nothing", "/v1/embeddings"])
def test_what_is_not_there_is_404(simulator: Simulator, path: str) -> None:
    response = simulator.get(path)
    assert (response.status_code, response.json()) == (404, {"detail": "Not Found"})


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/v1/chat/completions"), ("POST", "/v1/models"), ("PUT", "/ready")]
)
def test_wrong_methods_are_405(simulator: Simulator, method: str, path: str) -> None:
    response = simulator.http.request(method, path)
    assert (response.status_code, response.json()) == (405, {"detail": "Method Not Allowed"})


def test_the_openai_client_gets_its_answers(simulator: Simulator) -> None:
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{simulator.port}/v1", api_key="none", max_retries=0)
    chat = client.chat.completions.create(model="any/name", messages=[{"role": "user", "content": "hi there"}])
    assert (chat.model, chat.choices[0].message.content, chat.choices[0].finish_reason) == (
        "any/name",
        SENTENCE,
        "stop",
    )
    assert chat.usage is not None
    assert (chat.usage.prompt_tokens, chat.usage.completion_tokens, chat.usage.total_tokens) == (2, 15, 17)
    completion = client.completions.create(model="m", prompt="hi", max_tokens=4)
    assert (completion.choices[0].text, completion.choices[0].finish_reason) == ("This is the SGLang", "length")
    stream = client.chat.completions.create(
        model="m", messages=[{"role": "user", "content": "hi"}], stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == SENTENCE
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 15


def test_streams_end_in_done(simulator: Simulator) -> None:
    events = simulator.post("/v1/completions", {"prompt": "hi", "stream": True, "max_tokens": 2}).text.split("\n\n")
    assert [json.loads(event.removeprefix("data: "))["choices"][0]["text"] for event in events[:-2]] == [
        "This",
        " is",
        "",
    ]
    assert events[-2:] == ["data: [DONE]", ""]
    native = simulator.post("/generate", {"text": "hi", "stream": True, "sampling_params": {"max_new_tokens": 2}})
    first, second, done, _ = native.text.split("\n\n")
    assert json.loads(first.removeprefix("data: "))["text"] == "This"
    last = json.loads(second.removeprefix("data: "))
    assert (last["text"], last["meta_info"]["finish_reason"]) == ("This is", {"type": "length", "length": 2})
    assert done == "data: [DONE]"


def test_ignore_eos_makes_long_answers(simulator: Simulator) -> None:
    answer = simulator.post("/v1/chat/completions", {**CHAT, "max_tokens": 100, "ignore_eos": True}).json()
    assert (answer["usage"]["completion_tokens"], answer["choices"][0]["finish_reason"]) == (100, "length")
    assert answer["choices"][0]["message"]["content"].startswith(f"{SENTENCE} This is")


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/v1/chat/completions", {"model": "x"}, "('body', 'messages'), 'msg': 'Field required'"),
        ("/v1/completions", {"model": "x"}, "('body', 'prompt'), 'msg': 'Field required'"),
        ("/generate", {}, "Either text, input_ids"),
        ("/generate", {"text": "a", "sampling_params": [1]}, "('body', 'sampling_params'), 'msg': 'Input should be an"),
        ("/v1/completions", {"prompt": "a", "max_tokens": "many"}, "max_tokens must be at least 1, got many."),
        ("/v1/chat/completions", {**CHAT, "max_tokens": 0}, "max_tokens must be at least 1, got 0."),
        ("/v1/completions", {"prompt": "a", "max_tokens": 9000}, "maximum context length of 4096 tokens"),
        (
            "/v1/completions",
            {"prompt": "a " * 5000},
            "You requested a total of 5016 tokens: 5000 tokens from the input",
        ),
        ("/v1/chat/completions", {**CHAT, "response_format": {"type": "structural_tag"}}, "cannot constrain its"),
        ("/v1/completions", {"prompt": "a", "ebnf": "root ::= x"}, "cannot constrain its answer"),
        ("/v1/completions", {"prompt": "a", "regex": "[A-Z"}, "Failed to compile regex grammar"),
        ("/generate", {"text": "a", "sampling_params": {"json_schema": "{"}}, "Failed to compile json grammar"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": IMAGE}]}, "Model only supports text input"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [1]}]}, "Input should be dict"),
        ("/v1/chat/completions", {**CHAT, "n": 2}, "one choice per request"),
    ],
)
def test_bad_bodies_are_400(simulator: Simulator, path: str, body: object, words: str) -> None:
    response = simulator.post(path, body)
    assert (response.status_code, response.json()["object"]) == (400, "error")
    assert words in response.json()["message"]


def test_answers_have_the_form_that_the_request_prescribes(simulator: Simulator) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 3}}, "required": ["n"]}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    chat = simulator.post("/v1/chat/completions", {**CHAT, "response_format": form}).json()["choices"][0]
    assert (json.loads(chat["message"]["content"]), chat["finish_reason"]) == ({"n": 3}, "stop")
    cut = simulator.post("/v1/chat/completions", {**CHAT, "response_format": form, "max_tokens": 1}).json()
    assert cut["choices"][0]["finish_reason"] == "length"
    text = simulator.post("/v1/completions", {"prompt": "a", "regex": "[A-Z]{3}-[0-9]{2}"}).json()["choices"][0]["text"]
    assert text == "AAA-00"
    options = {"json_schema": json.dumps(schema)}
    assert simulator.post("/generate", {"text": "a", "sampling_params": options}).json()["text"] == '{"n": 3}'


def test_images_are_taken_where_the_model_is_said_to_see(start: Start) -> None:
    simulator = start(SGLANG_SIMULATOR_VISION="1").wait_until_ready()
    assert simulator.get("/model_info").json()["has_image_understanding"] is True
    message = {"role": "user", "content": [{"type": "text", "text": "What is this?"}, *IMAGE]}
    seen = simulator.post("/v1/chat/completions", {"messages": [message]}).json()
    assert (seen["usage"]["prompt_tokens"], seen["choices"][0]["message"]["content"]) == (4, SENTENCE)
    far = {"type": "image_url", "image_url": {"url": "https://images.example/a.png"}}
    refused = simulator.post("/v1/chat/completions", {"messages": [message | {"content": [far]}]})
    assert (refused.status_code, "data URLs" in refused.text) == (400, True)


@pytest.mark.parametrize("body", [b"{bad", b"[]", b"\xff"])
def test_bodies_that_are_no_objects_are_400(simulator: Simulator, body: bytes) -> None:
    assert simulator.http.post("/v1/chat/completions", content=body).status_code == 400


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET /ping HTTP/1.1\r\ncontent-length: many\r\n\r\n", 400),
        (b"POST /generate HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 411),
        (b"POST /generate HTTP/1.1\r\ncontent-length: 99999999999\r\n\r\n", 413),
        (b"GET /ping HTTP/1.1\r\nx: " + b"y" * 70_000 + b"\r\n\r\n", 431),
    ],
)
def test_what_is_no_request_is_refused(simulator: Simulator, sent: bytes, status: int) -> None:
    with socket.create_connection(("127.0.0.1", simulator.port), timeout=5) as connection:
        connection.sendall(sent)
        assert connection.recv(1024).startswith(f"HTTP/1.1 {status} ".encode())
    assert simulator.get("/ping").status_code == 200


def test_the_api_key_opens_all_but_the_probes(start: Start) -> None:
    simulator = start("--api-key", "secret", "--enable-metrics").wait_until_ready()
    assert [simulator.get(path).status_code for path in ("/ready", "/metrics", "/ping", "/v1/models")] == [
        200,
        200,
        401,
        401,
    ]
    assert simulator.post("/v1/chat/completions", CHAT).json() == {"error": "Unauthorized"}
    for header, status in (("Bearer secret", 200), ("bearer secret", 200), ("Bearer wrong", 401), ("secret", 401)):
        response = simulator.post("/v1/chat/completions", CHAT, headers={"Authorization": header})
        assert response.status_code == status


def test_metrics_are_there_when_asked_for(start: Start) -> None:
    simulator = start("--served-model-name", "lab", "--enable-metrics").wait_until_ready()
    simulator.post("/v1/chat/completions", CHAT)
    simulator.post("/v1/completions", {"prompt": "a", "max_tokens": 3, "stream": True})
    lines = simulator.get("/metrics").text.splitlines()
    labels = '{engine_type="unified",model_name="lab",is_streaming="%s"}'
    assert f"sglang:generation_tokens_total{labels % 'false'} 15.0" in lines
    assert f"sglang:generation_tokens_total{labels % 'true'} 3.0" in lines
    assert f"sglang:num_requests_total{labels % 'true'} 1.0" in lines
    assert 'sglang:num_running_reqs{engine_type="unified",model_name="lab",pp_rank="0",tp_rank="0"} 0.0' in lines
    assert "# TYPE sglang:gen_throughput gauge" in lines
    assert 'sglang:http_responses_total{endpoint="/v1/completions",method="POST",status_code="200"} 1.0' in lines
    assert start().wait_until_ready().get("/metrics").status_code == 404


def test_many_streams_at_once_come_through_whole(start: Start) -> None:
    simulator = start(SGLANG_SIMULATOR_TOKENS_PER_SECOND="200").wait_until_ready()

    def stream(_: int) -> str:
        body = {"prompt": "hi", "stream": True, "max_tokens": 60, "ignore_eos": True}
        return httpx.post(f"http://127.0.0.1:{simulator.port}/v1/completions", json=body, timeout=20).text

    begun = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(64) as pool:
        texts = list(pool.map(stream, range(64)))
    assert all(text.count("data: ") == 62 and text.endswith("data: [DONE]\n\n") for text in texts)
    assert time.monotonic() - begun >= 0.3


def test_requests_wait_for_a_slot_and_the_queue_has_an_end(start: Start) -> None:
    simulator = start(
        "--max-running-requests", "1", "--max-queued-requests", "1", SGLANG_SIMULATOR_TOKENS_PER_SECOND="20"
    ).wait_until_ready()  # fmt: skip
    body = {"prompt": "hi", "max_tokens": 10, "ignore_eos": True}
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        first = pool.submit(simulator.post, "/v1/completions", body)
        second = pool.submit(simulator.post, "/v1/completions", body)
        deadline = time.monotonic() + 5
        while (load := simulator.get("/v1/loads").json()["loads"][0])["num_waiting_reqs"] == 0:
            assert time.monotonic() < deadline
        assert (load["num_running_reqs"], load["num_waiting_reqs"], load["num_used_tokens"]) == (1, 1, 11)
        refused = simulator.post("/v1/completions", body)
        assert (refused.status_code, refused.json()["message"]) == (503, "The request queue is full.")
        streamed = simulator.post("/v1/completions", {**body, "stream": True})
        assert (streamed.status_code, streamed.text.count("The request queue is full."), streamed.text[-8:-2]) == (
            200,
            1,
            "[DONE]",
        )
        assert [first.result().status_code, second.result().status_code] == [200, 200]


def test_a_client_that_goes_away_frees_its_slot(start: Start) -> None:
    simulator = start("--max-running-requests", "1", SGLANG_SIMULATOR_TOKENS_PER_SECOND="50").wait_until_ready()
    body = {"prompt": "hi", "max_tokens": 1000, "ignore_eos": True, "stream": True}
    with simulator.http.stream("POST", "/v1/completions", json=body) as response:
        next(response.iter_lines())
    assert simulator.post("/v1/completions", {"prompt": "hi", "max_tokens": 1}).status_code == 200
