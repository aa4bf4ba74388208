"""Whether a server that serves is also good: a question with a known answer. Python 3.8, standard library.

`verdict` is the seam: whatever measures quality answers go, no-go or inconclusive, and why.
"""

from __future__ import annotations

import http.client
import json
import re

from ansible.module_utils import sglang_host_probe as probe

GO, NO_GO, INCONCLUSIVE = "go", "no-go", "inconclusive"
TIMEOUT = 120
SHOWN = 120  # characters of an answer


def verdict(gate, quality):
    """(word, why) for the service of `gate`; `quality` is {"prompt", "expect", "max_tokens"}, or the "verdict" with
    its "why" where an evaluation has come to one."""
    if quality.get("verdict"):
        return quality["verdict"], quality["why"]
    body = {"model": gate["served_model_name"], "temperature": 0, "max_tokens": quality["max_tokens"],
            "messages": [{"role": "user", "content": quality["prompt"]}]}
    try:
        status, text = probe.post(gate, gate["endpoints"]["chat"], body, TIMEOUT)
    except (OSError, http.client.HTTPException) as error:
        return INCONCLUSIVE, "no answer: %s" % (error or type(error).__name__)
    return judged(status, text, quality["expect"])


def judged(status, text, expect):
    """What an HTTP answer says about quality. Pure.

    Only an answer of the model can be wrong; that there is none says nothing about it.
    """
    if status != 200:
        return INCONCLUSIVE, "HTTP %d: %s" % (status, text.strip()[:SHOWN])
    try:
        message = json.loads(text)["choices"][0]["message"]
        said = message.get("content") or message.get("reasoning_content") or ""
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return INCONCLUSIVE, "no completion: %s" % text.strip()[:SHOWN]
    if not said.strip():
        return INCONCLUSIVE, "the answer is empty"
    found = re.search(expect, said)
    shown = " ".join(said.split())[:SHOWN]
    return (GO, "'%s' has /%s/" % (shown, expect)) if found else (NO_GO, "'%s' has no /%s/" % (shown, expect))
