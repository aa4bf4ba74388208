"""Arguments of a command line whose values are secrets: one rule for all that show, keep or compare arguments."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

# By its last word: --api-key and --ssl-keyfile-password are secrets, --tokenizer-path and --max-total-tokens are not.
_SECRET_FLAG = re.compile(r"^--([\w-]+[-_])?(api)?(key|token|secret|password)$", re.IGNORECASE)


def without_secrets(arguments: Sequence[str], instead: Callable[[str], str]) -> Iterator[str]:
    """The arguments with `instead(value)` for each value of a flag that is called like a secret."""
    previous = ""
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if equals and _SECRET_FLAG.match(flag):
            yield f"{flag}={instead(value)}"
        elif _SECRET_FLAG.match(previous) and not argument.startswith("--"):
            yield instead(argument)
        else:
            yield argument
        previous = argument
