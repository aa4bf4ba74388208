import pytest
from ansible.module_utils.sglang_host_bench import shown

from sglang_ops.spec.secret_flags import without_secrets

GIVEN = [
    "--api-key",
    "a",
    "--ssl-keyfile-password=b",
    "--tokenizer-path",
    "/t",
    "--max-total-tokens=9",
    "--apikey",
    "--x",
]
SHOWN = [
    "--api-key",
    "?",
    "--ssl-keyfile-password=?",
    "--tokenizer-path",
    "/t",
    "--max-total-tokens=9",
    "--apikey",
    "--x",
]


def test_values_of_secrets_alone_are_replaced() -> None:
    assert list(without_secrets(GIVEN, lambda _: "?")) == SHOWN


@pytest.mark.parametrize(
    "flag", ["--token", "--hf-token", "--HF_TOKEN", "--admin-api-key", "--secret", "--db-password"]
)
def test_whatever_is_called_like_a_secret_is_one(flag: str) -> None:
    assert list(without_secrets([flag, "v"], lambda value: f"not {value}")) == [flag, "not v"]


def test_hosts_have_the_same_rule() -> None:
    assert shown(GIVEN) == [word.replace("?", "(hidden)") for word in SHOWN]
