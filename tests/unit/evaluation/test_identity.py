"""A server that became another one ends the run: no answer of it is taken for one of the old."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sglang_ops.evaluation.agent.identity import KNOWN, MARK, Identity, Replaced

SERVER = "127.0.0.1:8000"


def told(model: str = "lab/tiny", context: int = 4096) -> Callable[[str], tuple[int, str]]:
    answers = {
        "/model_info": json.dumps({"model_path": model, "is_generation": True}),
        "/v1/models": json.dumps({"data": [{"id": "tiny", "max_model_len": context}]}),
    }
    return lambda path: (200, answers[path]) if path in answers else (404, "")


def test_the_same_server_may_come_back(tmp_path: Path) -> None:
    identity = Identity(tmp_path)
    identity.check(SERVER, told(), False)
    identity.check(SERVER, told(), True)
    Identity(tmp_path).check(SERVER, told(), True)
    assert not identity.changed


@pytest.mark.parametrize("other", [told(model="lab/other"), told(context=1024)])
def test_another_model_is_noticed_after_it_was_away_and_in_later_lives(
    tmp_path: Path, other: Callable[[str], tuple[int, str]]
) -> None:
    Identity(tmp_path).check(SERVER, told(), False)
    later = Identity(tmp_path)
    with pytest.raises(Replaced, match="has another model than when the run began"):
        later.check(SERVER, other, True)
    assert "→" in later.changed


def test_a_server_that_does_not_say_is_no_other(tmp_path: Path) -> None:
    identity = Identity(tmp_path)
    identity.check(SERVER, told(), False)
    identity.check(SERVER, lambda _: (503, "busy"), True)


def test_the_mark_of_a_deploy_counts_at_once(tmp_path: Path) -> None:
    identity = Identity(tmp_path)
    identity.check(SERVER, told(), False)
    (tmp_path / MARK).write_text(json.dumps({"service": "sglang-x", "before": "aaa", "release": "bbb"}))
    with pytest.raises(Replaced, match="sglang-x was release aaa and became release bbb during the run"):
        identity.check(SERVER, told(), False)


def test_what_is_known_is_written_once_and_whole(tmp_path: Path) -> None:
    identity = Identity(tmp_path)
    identity.check(SERVER, told(), False)
    before = (tmp_path / KNOWN).stat().st_ino
    identity.check(SERVER, told(), True)
    assert (tmp_path / KNOWN).stat().st_ino == before, "nothing new is known"
    identity.check("127.0.0.1:8001", told(), False)
    assert len(json.loads((tmp_path / KNOWN).read_text())) == 2
    assert (tmp_path / KNOWN).stat().st_ino != before, "replaced by a rename"


@pytest.mark.parametrize("left", ["", '{"127.0.0.1:8000": {"mod', "[]"])
def test_a_file_cut_off_by_a_power_cut_ends_no_run(left: str, tmp_path: Path) -> None:
    (tmp_path / KNOWN).write_text(left)
    Identity(tmp_path).check(SERVER, told(), False)
    assert json.loads((tmp_path / KNOWN).read_text())[SERVER]["model_path"] == "lab/tiny"
