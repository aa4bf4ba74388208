"""Faults of the lab's model source, as a client sees them."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from sglang_ops.lab.hub import HubServer

REPO, SIZE = "lab/some", 100_000
CONTENT = bytes(range(250)) * (SIZE // 250)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[httpx.Client]:
    (tmp_path / REPO).mkdir(parents=True)
    (tmp_path / REPO / "model.safetensors").write_bytes(CONTENT)
    (tmp_path / REPO / "config.json").write_bytes(b"{}")
    with HubServer(tmp_path, "127.0.0.1", 0, None) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        with httpx.Client(base_url=f"http://127.0.0.1:{server.server_address[1]}", timeout=2) as made:
            yield made
        server.shutdown()
        thread.join()


def switch(client: httpx.Client, *faults: dict[str, Any]) -> None:
    assert client.put(f"/-/faults/{REPO}", content=json.dumps(faults)).status_code == 200


def weights(client: httpx.Client, **headers: str) -> httpx.Response:
    return client.get(f"/{REPO}/resolve/main/model.safetensors", headers=headers)


def test_without_faults_everything_is_right_and_counted(client: httpx.Client) -> None:
    assert weights(client).content == CONTENT
    assert weights(client, Range="bytes=99000-").content == CONTENT[99_000:]
    assert client.get("/-/traffic").json() == {REPO: {"files": 2, "bytes": 101_000}}


def test_a_refusal_has_its_code_and_ends_after_so_many(client: httpx.Client) -> None:
    switch(client, {"path": "*.safetensors", "status": 429, "retry_after": 7, "times": 2, "code": "Slow"})
    answers = [client.head(f"/{REPO}/resolve/main/model.safetensors"), weights(client), weights(client)]
    assert [answer.status_code for answer in answers] == [429, 429, 200]
    assert (answers[0].headers["Retry-After"], answers[0].headers["X-Error-Code"]) == ("7", "Slow")
    assert client.get(f"/{REPO}/resolve/main/config.json").status_code == 200


def test_the_description_fails_apart_from_the_files(client: httpx.Client) -> None:
    switch(client, {"on": "api", "status": 500})
    assert client.get(f"/api/models/{REPO}").status_code == 500
    assert weights(client).status_code == 200
    assert client.delete(f"/-/faults/{REPO}").status_code == 200
    assert client.get(f"/api/models/{REPO}").status_code == 200


def test_corrupt_content_has_the_right_size(client: httpx.Client) -> None:
    switch(client, {"corrupt": True, "times": 1})
    bad = weights(client).content
    assert len(bad) == SIZE
    assert [index for index in range(SIZE) if bad[index] != CONTENT[index]] == [SIZE - 1]
    assert weights(client).content == CONTENT


def test_a_cut_connection_can_be_continued(client: httpx.Client) -> None:
    switch(client, {"cut_at": 0.5, "times": 1})
    with pytest.raises(httpx.RemoteProtocolError, match="without sending complete message body"):
        weights(client)
    assert weights(client, Range="bytes=50000-").content == CONTENT[50_000:]


def test_a_hanging_one_says_nothing_more(client: httpx.Client) -> None:
    switch(client, {"hang_at": 0.8})
    got: list[bytes] = []
    with (
        pytest.raises(httpx.ReadTimeout),
        client.stream("GET", f"/{REPO}/resolve/main/model.safetensors", timeout=0.5) as answer,
    ):
        got.extend(answer.iter_bytes())
    assert b"".join(got) == CONTENT[:80_000]


def test_a_slow_one_takes_its_time(client: httpx.Client) -> None:
    switch(client, {"bytes_per_second": 200_000})
    answer = weights(client)
    assert answer.content == CONTENT
    assert answer.elapsed.total_seconds() >= 0.4


@pytest.mark.parametrize(("path", "body", "status"), [(REPO, b"[{", 400), (REPO, b'[{"no": 1}]', 400), ("x", b"", 404)])
def test_nonsense_is_refused(client: httpx.Client, path: str, body: bytes, status: int) -> None:
    assert client.put(f"/-/faults/{path}", content=body).status_code == status


def test_a_client_that_goes_away_harms_nobody(client: httpx.Client) -> None:
    switch(client, {"bytes_per_second": 50_000, "times": 1})
    host, port = str(client.base_url.host), int(client.base_url.port or 0)
    with socket.create_connection((host, port)) as raw:
        raw.sendall(f"GET /{REPO}/resolve/main/model.safetensors HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert raw.recv(100)
    assert weights(client).content == CONTENT
