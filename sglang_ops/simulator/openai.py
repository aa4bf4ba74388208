"""The generating endpoints: how a request is understood, and how its answer is written in each dialect."""

from __future__ import annotations

import base64
import json
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from .answers import Scripted
from .constraints import constrained
from .generation import Work, plan_work


class InvalidBodyError(Exception):
    """The body is not what the endpoint takes, or asks for what a simulator cannot truthfully do."""


class Call(ABC):
    """One request to a generating endpoint, and the answer in that endpoint's dialect.

    `vision` is whether the model takes images; without `constrains` a prescribed form is ignored, a fault.
    Raises InvalidBodyError, ConstraintError or ContextExceededError when made; all become status 400.
    """

    default_limit: ClassVar[int | None]  # tokens, where the request names none; None is what the context holds

    def __init__(
        self,
        body: bytes,
        *,
        model: str,
        context_tokens: int,
        vision: bool = False,
        constrains: bool = True,
        answers: Sequence[Scripted] = (),
    ) -> None:
        asked = _object(body)
        options = self._options(asked)
        if (options.get("n") or 1) != 1:
            raise InvalidBodyError("The simulator gives one choice per request.")
        self._vision = vision
        prompt = self._prompt(asked)
        self.script = next((one for one in answers if one.contains in prompt), None)
        prescribed = constrained(options, _part(asked, "response_format")) if constrains else None
        self.work: Work = plan_work(
            prompt,
            prescribed=self.script.answer or "" if self.script else prescribed,
            limit=_limit(options) or self.default_limit,
            ignore_eos=bool(options.get("ignore_eos")),
            context_tokens=context_tokens,
        )
        self.streamed = bool(asked.get("stream"))
        self.finish_reason = "stop" if self.work.stopped else "length"
        self._usage_streamed = bool(_part(asked, "stream_options").get("include_usage"))
        self._frame = {"id": uuid.uuid4().hex, "created": int(time.time()), "model": str(asked.get("model", model))}

    async def answer(self, tokens: AsyncIterator[str]) -> dict[str, Any]:
        """The whole body of an answer that is not streamed."""
        return self._whole("".join([token async for token in tokens]))

    async def events(self, tokens: AsyncIterator[str]) -> AsyncGenerator[bytes]:
        """The server-sent events of a streamed answer, up to and with `[DONE]`."""
        for part in self._opening():
            yield event(part)
        count = 0
        async for _ in tokens:
            count += 1
            yield event(self._piece(count))
        for part in self._closing():
            yield event(part)
        yield b"data: [DONE]\n\n"

    def _options(self, asked: Mapping[str, Any]) -> Mapping[str, Any]:
        return asked

    @abstractmethod
    def _prompt(self, asked: Mapping[str, Any]) -> str: ...

    @abstractmethod
    def _whole(self, text: str) -> dict[str, Any]: ...

    @abstractmethod
    def _piece(self, count: int) -> dict[str, Any]: ...

    def _opening(self) -> Iterator[dict[str, Any]]:
        yield from ()

    def _closing(self) -> Iterator[dict[str, Any]]:
        yield from ()

    def _usage(self) -> dict[str, Any]:
        prompt, completion = self.work.prompt_tokens, len(self.work.output)
        return {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}


class Completion(Call):
    """/v1/completions."""

    default_limit: ClassVar[int | None] = 16
    kinds: ClassVar[tuple[str, str]] = ("text_completion", "text_completion")  # of a whole answer, of a chunk

    def _prompt(self, asked: Mapping[str, Any]) -> str:
        if not isinstance(asked.get("prompt"), str):
            raise InvalidBodyError("1 validation error:\n  'loc': ('body', 'prompt'), 'msg': 'Field required'")
        return str(asked["prompt"])

    def _content(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def _delta(self, token: str) -> dict[str, Any]:
        return {"text": token}

    def _whole(self, text: str) -> dict[str, Any]:
        choice = self._choice(self._content(text), self.finish_reason)
        return {"object": self.kinds[0], **self._frame, "choices": [choice], "usage": self._usage()}

    def _piece(self, count: int) -> dict[str, Any]:
        return self._chunk(self._delta(self.work.output[count - 1]), None)

    def _closing(self) -> Iterator[dict[str, Any]]:
        yield self._chunk(self._delta(""), self.finish_reason)
        if self._usage_streamed:
            yield {"object": self.kinds[1], **self._frame, "choices": [], "usage": self._usage()}

    def _chunk(self, content: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
        return {"object": self.kinds[1], **self._frame, "choices": [self._choice(content, finish_reason)]}

    def _choice(self, content: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
        return {"index": 0, **content, "logprobs": None, "finish_reason": finish_reason, "matched_stop": None}


class Chat(Completion):
    """/v1/chat/completions."""

    default_limit = None
    kinds = ("chat.completion", "chat.completion.chunk")

    def _prompt(self, asked: Mapping[str, Any]) -> str:
        messages = asked.get("messages")
        if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
            raise InvalidBodyError("1 validation error:\n  'loc': ('body', 'messages'), 'msg': 'Field required'")
        return " ".join(self._text(message.get("content")) for message in messages)

    def _text(self, content: object) -> str:
        """The words of a message, which may be a list of texts and images."""
        if not isinstance(content, list):
            return str(content or "")
        return " ".join(self._words(part) for part in content)

    def _words(self, part: object) -> str:
        """The words of one part of a message; an image is one, which stands for it."""
        if not isinstance(part, dict):
            raise InvalidBodyError("1 validation error:\n  'loc': ('body', 'messages'), 'msg': 'Input should be dict'")
        if part.get("type") != "image_url":
            return str(part.get("text"))
        if not self._vision:
            raise InvalidBodyError("Model only supports text input; received unsupported content type 'image_url'.")
        head, _, data = _part(part, "image_url").get("url", "").partition(",")
        try:
            image = base64.b64decode(data, validate=True)
        except ValueError:
            image = b""
        if not head.startswith("data:image/") or not image:
            raise InvalidBodyError("The simulator takes images as data URLs in base64 only.")
        return "<image>"

    def _content(self, text: str) -> dict[str, Any]:
        reasoning = self.script.reasoning if self.script else None
        content = None if self.script and self.script.answer is None else text
        return {"message": {"role": "assistant", "content": content, "reasoning_content": reasoning}}

    def _delta(self, token: str) -> dict[str, Any]:
        return {"delta": {"content": token} if token else {}}

    def _opening(self) -> Iterator[dict[str, Any]]:
        yield self._chunk({"delta": {"role": "assistant", "content": ""}}, None)


class Generate(Call):
    """SGLang's own /generate, whose stream repeats the text so far."""

    default_limit = 128

    def _options(self, asked: Mapping[str, Any]) -> Mapping[str, Any]:
        return _part(asked, "sampling_params")

    def _prompt(self, asked: Mapping[str, Any]) -> str:
        if isinstance(asked.get("input_ids"), list):
            return " ".join(map(str, asked["input_ids"]))
        if not isinstance(asked.get("text"), str):
            raise InvalidBodyError("Either text, input_ids or input_embeds should be provided.")
        return str(asked["text"])

    def _whole(self, text: str) -> dict[str, Any]:
        return self._so_far(text, len(self.work.output))

    def _piece(self, count: int) -> dict[str, Any]:
        return self._so_far("".join(self.work.output[:count]), count)

    def _so_far(self, text: str, count: int) -> dict[str, Any]:
        finished = {"type": self.finish_reason, **({} if self.work.stopped else {"length": count})}
        meta = {
            "id": self._frame["id"],
            "finish_reason": finished if count == len(self.work.output) else None,
            "prompt_tokens": self.work.prompt_tokens,
            "completion_tokens": count,
            "cached_tokens": 0,
        }
        return {"text": text, "output_ids": list(range(count)), "meta_info": meta}


CALLS: Mapping[str, type[Call]] = {
    "/v1/chat/completions": Chat,
    "/v1/completions": Completion,
    "/generate": Generate,
}


def _object(body: bytes) -> dict[str, Any]:
    try:
        asked = json.loads(body)
    except ValueError as error:
        raise InvalidBodyError(f"1 validation error:\n  'msg': 'JSON decode error: {error}'") from error
    if not isinstance(asked, dict):
        raise InvalidBodyError("1 validation error:\n  'msg': 'Input should be a valid dictionary'")
    return asked


def _part(asked: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = asked.get(name) or {}
    if not isinstance(part, dict):
        raise InvalidBodyError(f"1 validation error:\n  'loc': ('body', '{name}'), 'msg': 'Input should be an object'")
    return part


def _limit(options: Mapping[str, Any]) -> int | None:
    """How many tokens the request wants at most, if it says so."""
    for name in ("max_new_tokens", "max_completion_tokens", "max_tokens"):
        limit = options.get(name)
        if limit is not None:
            if not isinstance(limit, int) or limit < 1:
                raise InvalidBodyError(f"{name} must be at least 1, got {limit}.")
            return limit
    return None


def event(part: Mapping[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(part, separators=(",", ":")).encode() + b"\n\n"
