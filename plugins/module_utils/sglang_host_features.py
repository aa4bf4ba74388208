"""What a service is asked to show beyond serving: answers of a prescribed form, and sight.

The prompts say nothing of the form, so that nothing but constrained decoding can produce it. All numbers and
texts that a form leaves open are short: a model that talks nonsense comes to its end too.
Python 3.8, standard library.
"""

from __future__ import annotations

import base64
import json
import re
import struct
import zlib

from ansible.module_utils import sglang_host_probe as probe

TIMEOUT = 120  # seconds for an answer
MOST_TOKENS = 1024  # the forms need 40 at most; the rest is for models that think first
PROMPT = "What do you know about apples?"
SCHEMA = {
    "type": "object",
    "properties": {
        "fruit": {"type": "string", "maxLength": 16},
        "grams": {"type": "integer", "minimum": 0, "maximum": 999},
        "colour": {"type": "string", "enum": ["red", "green", "yellow"]},
    },
    "required": ["fruit", "grams", "colour"],
    "additionalProperties": False,
}
REGEX = "[A-Z]{3}-[0-9]{4}"
SQUARE = 56  # pixels a side: the least that Qwen's vision models take
RED = (255, 0, 0)


def ask(gate, names, layers):
    """One layer a feature. A service that does not serve, as its `layers` say, is not asked."""
    failing = [item["name"] for item in layers if not item["ok"]]
    if failing:
        return [probe.layer(name, False, "not asked, because %s failed" % failing[0]) for name in names]
    return [probe.answered(name, FEATURES[name], gate) for name in names]


def _json_schema(gate):
    form = {"name": "fruit", "schema": SCHEMA, "strict": True}
    text = _whole(gate, response_format={"type": "json_schema", "json_schema": form})
    try:
        wrong = mismatch(json.loads(text), SCHEMA)
    except ValueError:
        wrong = "it is no JSON"
    if wrong:
        raise probe.Answer("the answer does not have the form of the schema: %s: %s" % (wrong, shown(text)))
    return "as the schema says: %s" % shown(text)


def _regex(gate):
    text = _whole(gate, regex=REGEX)
    if not re.fullmatch(REGEX, text):
        raise probe.Answer("the answer does not match %s: %s" % (REGEX, shown(text)))
    return "matches %s: %s" % (REGEX, shown(text))


def _vision(gate):
    if _model_info(gate).get("has_image_understanding") is False:
        raise probe.Answer("%s takes no images (has_image_understanding is false)" % gate["served_model_name"])
    image = "data:image/png;base64,%s" % base64.b64encode(png(SQUARE, RED)).decode()
    question = {"type": "text", "text": "What colour is this square? Answer in one word."}
    text, _ = _chat(gate, [question, {"type": "image_url", "image_url": {"url": image}}])
    if not text.strip():
        raise probe.Answer("the answer to a red square is empty")
    return "says of a red square: %s" % shown(text)


FEATURES = {"json_schema": _json_schema, "regex": _regex, "vision": _vision}


def _whole(gate, **form):
    """The text of an answer of the given form that came to its own end."""
    text, reason = _chat(gate, PROMPT, **form)
    if reason == "length":
        raise probe.Answer("the answer was cut at %d tokens (finish_reason length): %s" % (MOST_TOKENS, shown(text)))
    return text


def _chat(gate, content, **form):
    """(text, finish reason) of the answer to one message."""
    path = gate["endpoints"]["chat"]
    body = {
        "model": gate["served_model_name"], "messages": [{"role": "user", "content": content}],
        "temperature": 0, "max_tokens": MOST_TOKENS,
    }
    status, answer = probe.post(gate, path, dict(body, **form), TIMEOUT)
    if status != 200:
        raise probe.Answer("%s answers %d: %s" % (path, status, answer.strip()[:200]))
    reply = probe.parse(answer, path)
    probe.generated(reply, path)
    choice = reply["choices"][0]
    return choice.get("message", {}).get("content") or "", choice.get("finish_reason")


def _model_info(gate):
    for path in ("/model_info", "/get_model_info"):  # the second is the name of earlier releases
        status, body = probe.get(gate, path, 10)
        if status == 200:
            return probe.parse(body, path)
    return {}


def mismatch(value, schema, where="it"):
    """How a JSON value differs from a schema made of SCHEMA's constructs, "" where it does not."""
    kind = schema["type"]
    if not isinstance(value, {"object": dict, "string": str, "integer": int}[kind]) or isinstance(value, bool):
        return "%s is no %s" % (where, kind)
    if "enum" in schema and value not in schema["enum"]:
        return "%s is none of %s" % (where, ", ".join(schema["enum"]))
    if "maxLength" in schema and len(value) > schema["maxLength"]:
        return "%s is longer than %d characters" % (where, schema["maxLength"])
    if "minimum" in schema and not schema["minimum"] <= value <= schema["maximum"]:
        return "%s is not within %d and %d" % (where, schema["minimum"], schema["maximum"])
    if kind != "object":
        return ""
    if set(value) != set(schema["required"]):
        return "%s has the keys %s, not %s" % (where, ", ".join(sorted(value)), ", ".join(schema["required"]))
    return next(filter(None, (mismatch(value[key], schema["properties"][key], key) for key in schema["required"])), "")


def png(side, colour):
    """A square of one colour as a PNG file."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)  # 8 bits of red, green and blue, not interlaced
    rows = (b"\0" + bytes(colour) * side) * side
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, data) for kind, data in parts)


def shown(text):
    """The beginning of an answer, on one line."""
    words = " ".join(text.split())
    return words if len(words) <= 80 else words[:79] + "…"
