"""The simulated scheduler: the tokens of an answer, at a given speed, with a queue in front.

A token is a word. An answer whose form the request prescribes has that form. Every other answer is the same
sentence; it ends there unless the request says `ignore_eos`, and then it is repeated until the tokens asked for
are there.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from itertools import cycle, islice

_SENTENCE = "This is the SGLang simulator: no model was run, and every answer is this one."
_WORDS = tuple(_SENTENCE.split(" "))
_TOKEN = re.compile(r"\s*\S+|\s+")
_THROUGHPUT_WINDOW_SECONDS = 10.0


class ContextExceededError(Exception):
    """Prompt and answer do not fit into the context; the text is the engine's."""


@dataclass(frozen=True)
class Work:
    """One request for tokens."""

    prompt_tokens: int
    output: tuple[str, ...]  # the tokens, which joined give the text
    stopped: bool  # whether the answer ends by itself ("stop"), or was cut ("length")


def plan_work(
    prompt: str, *, limit: int | None, ignore_eos: bool, context_tokens: int, prescribed: str | None = None
) -> Work:
    """What will be answered to `prompt`, with at most `limit` tokens. Raises ContextExceededError."""
    prompt_tokens = max(1, len(prompt.split()))
    if limit is None:
        limit = max(1, context_tokens - prompt_tokens)
    if prompt_tokens + limit > context_tokens:
        raise ContextExceededError(
            f"Requested token count exceeds the model's maximum context length of {context_tokens} tokens. "
            f"You requested a total of {prompt_tokens + limit} tokens: {prompt_tokens} tokens from the input "
            f"messages and {limit} tokens for the completion. Please reduce the number of tokens in the input "
            "messages or the completion to fit within the limit."
        )
    if prescribed is not None:
        tokens = tuple(_TOKEN.findall(prescribed)) or ("",)
        return Work(prompt_tokens, tokens[:limit], stopped=limit >= len(tokens))
    length = limit if ignore_eos else min(limit, len(_WORDS))
    output = tuple(word if at == 0 else f" {word}" for at, word in enumerate(islice(cycle(_WORDS), length)))
    return Work(prompt_tokens, output, stopped=not ignore_eos and limit >= len(_WORDS))


class Scheduler:
    """Runs at most `most_running` requests at once, each at `tokens_per_second`; the others wait."""

    def __init__(self, *, most_running: int, most_queued: int | None, tokens_per_second: float) -> None:
        self.most_running = most_running
        self._most_queued = most_queued
        self._tokens_per_second = tokens_per_second
        self._slots = asyncio.Semaphore(most_running)
        self._recent: deque[tuple[float, int]] = deque()
        self.running: dict[object, Work] = {}
        self.queued = 0

    @property
    def full(self) -> bool:
        """Whether one more request would find no room in the queue."""
        return self._slots.locked() and self._most_queued is not None and self.queued >= self._most_queued

    @property
    def used_tokens(self) -> int:
        """Tokens that running requests hold in the cache."""
        return sum(work.prompt_tokens + len(work.output) for work in self.running.values())

    def throughput(self) -> float:
        """Tokens per second, over the last seconds."""
        while self._recent and self._recent[0][0] < time.monotonic() - _THROUGHPUT_WINDOW_SECONDS:
            self._recent.popleft()
        return sum(tokens for _, tokens in self._recent) / _THROUGHPUT_WINDOW_SECONDS

    async def run(self, work: Work) -> AsyncGenerator[str]:
        """The tokens of `work`, one by one, each when it is due."""
        self.queued += 1
        try:
            await self._slots.acquire()
        finally:
            self.queued -= 1
        key, done, start = object(), 0, time.monotonic()
        self.running[key] = work
        try:
            for done, token in enumerate(work.output, 1):
                # Sleeping costs more than a fast token takes, so run ahead by up to a millisecond.
                due = start + done / self._tokens_per_second - time.monotonic()
                await asyncio.sleep(due if due > 0.001 else 0)
                yield token
        finally:
            del self.running[key]
            self._slots.release()
            self._recent.append((time.monotonic(), done))
