"""Files on their way to a host."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from ansible.module_utils import sglang_host_arrivals as arrivals

CONTENT = b"weights" * 1000


@pytest.fixture
def arrival(tmp_path: Path) -> arrivals.Arrival:
    digest = hashlib.sha256(CONTENT).hexdigest()
    return arrivals.Arrival("blob", str(tmp_path / "blob"), str(tmp_path / "blob.part"), len(CONTENT), digest)


def test_nothing_there(arrival: arrivals.Arrival) -> None:
    assert arrival.offset == 0
    (wanted,) = arrivals.wanted([arrival])
    assert wanted["part"] == arrival.part
    assert wanted["offset"] == 0
    with pytest.raises(arrivals.ArrivalError, match="has not arrived"):
        arrival.accept()


@pytest.mark.parametrize(("held", "offset"), [(CONTENT[:100], 100), (CONTENT, len(CONTENT)), (CONTENT + b"x", 0)])
def test_sending_goes_on_where_it_was(arrival: arrivals.Arrival, held: bytes, offset: int) -> None:
    Path(arrival.part).write_bytes(held)
    assert arrival.offset == offset
    assert arrivals.remaining([arrival]) == len(CONTENT) - offset
    assert bool(arrivals.wanted([arrival])) is (offset < len(CONTENT))


def test_right_content_takes_its_place(arrival: arrivals.Arrival) -> None:
    Path(arrival.part).write_bytes(CONTENT)
    told: list[str] = []
    arrivals.accept_all([arrival], told.append)
    assert Path(arrival.path).read_bytes() == CONTENT
    assert not Path(arrival.part).exists()
    assert told == ["checking 7 / 7 kB"]
    assert arrivals.wanted([arrival]) == []


@pytest.mark.parametrize("place", ["part", "path"])
def test_wrong_content_is_removed(arrival: arrivals.Arrival, place: str) -> None:
    path = Path(getattr(arrival, place))
    path.write_bytes(b"x" + CONTENT[1:])
    with pytest.raises(arrivals.ArrivalError, match="and was removed"):
        arrival.accept()
    assert not path.exists()
    assert arrival.offset == 0
