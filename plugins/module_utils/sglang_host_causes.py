"""From SGLang's log to one sentence of cause, and to the phase of a start. Python 3.8, standard library."""

from __future__ import annotations

import re

# (pattern in the log, sentence). The first that matches, searching from the newest line, is the cause.
_CAUSES = (
    (r"error: (ambiguous option: .+)", "SGLang refuses the arguments: {0}"),
    (r"error: (unrecognized arguments: .+)", "SGLang refuses the arguments: {0}. Check extra_args for this release"),
    (r"error: (argument .+)", "SGLang refuses the arguments: {0}"),
    (r"(Loaded weights leave no GPU memory for the KV cache.+)", "{0}"),
    (
        r"Not enough memory\. Please try to increase --mem-fraction-static",
        "the GPU memory left is too small for the KV cache. Raise --mem-fraction-static, or use more GPUs",
    ),
    (r"OutOfMemoryError: (.{0,120})", "out of GPU memory: {0}. Lower --mem-fraction-static, or use more GPUs"),
    (r"invalid device ordinal", "the server wants more GPUs than the container has"),
    (r"\[Errno 98\].*", "the port was taken by another process while the model was loading"),
    (
        r"unresolvable CDI devices (.+)",
        "the container engine does not find the GPUs {0}. Run `nvidia-ctk cdi generate`",
    ),
    (
        r"could not select device driver",
        "the container engine cannot hand over GPUs. Install the NVIDIA container toolkit",
    ),
    (r"unsatisfied condition: (cuda\S+)", "the image needs {0}, the NVIDIA driver of the host is too old"),
    (r"(No such image.*|image not known.*)", "the image is gone from the host: {0}. Deploy again"),
    (r"(Subprocess \S+).* crashed with exit code (-?\d+)", "{0} crashed with exit code {1}"),
    (r"^(?:\w+\.)*(\w*(?:Error|Exception): .{1,200})", "{0}"),
)
# SGLang's own log lines, newest phase last.
_PHASES = (
    (r"fired up and ready to roll", "warmed up"),
    (r"Capture.*graph|cuda graph", "capturing CUDA graphs"),
    (r"KV Cache is allocated|Memory pool end", "KV cache allocated"),
    (r"Load weight end", "weights loaded"),
    (r"Load weight begin|Loading safetensors|Multi-thread loading", "loading weights"),
    (r"server_args", "initialising"),
)


def explain(why, log):
    """`why` with the reason that the log gives, where it gives one we know."""
    for line in reversed(log):
        for pattern, sentence in _CAUSES:
            match = re.search(pattern, line.strip())
            if match:
                reason = sentence.format(*[group.strip().rstrip(".") for group in match.groups()])
                return "%s: %s." % (why, reason) if why else "%s." % reason
    return "%s." % why


def phase(log):
    """The phase that a starting server is in, "" where its log does not tell."""
    for line in reversed(log):
        for pattern, name in _PHASES:
            if re.search(pattern, line, re.IGNORECASE):
                return name
    return ""
