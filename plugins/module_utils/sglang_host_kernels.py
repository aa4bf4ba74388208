"""Which caches of compiled kernels a host holds, and for which processor. Python 3.8, standard library."""

from __future__ import annotations

import hashlib
import os
import re

from ansible.module_utils.sglang_host_state import read_text

# What a compiler that is told `-march=native`, as Inductor's is, makes use of.
_EXTENSIONS = re.compile(r"avx|amx|sse|fma|bmi|f16c|vaes|vpcl|gfni|sha|sve|i8mm|bf16|asimd")


def filled(root):
    """The directories below `root` that hold a file, by path. One that is still arriving begins with a dot."""
    names = sorted(os.listdir(root)) if root and os.path.isdir(root) else []
    return [path for path in (os.path.join(root, name) for name in names if name[0] != ".") if not empty(path)]


def empty(path):
    """Whether there is no file in the directory, however deep; one that does not exist is empty. Links are files."""
    return not any(
        names or any(os.path.islink(os.path.join(parent, name)) for name in below)
        for parent, below, names in os.walk(path)
    )


def machine(text=None):
    """A mark of the processor: code compiled on a host runs on another one of the same mark.

    Pure where `text` (/proc/cpuinfo) is given.
    """
    text = read_text("/proc/cpuinfo") or "" if text is None else text
    told = dict(re.findall(r"^([\w ]+?)\s*: (.*)$", text.partition("\n\n")[0], re.MULTILINE))
    words = (told.get("flags") or told.get("Features") or "").split()
    known = [told.get("model name") or told.get("CPU part") or "", *sorted(filter(_EXTENSIONS.match, words))]
    return hashlib.sha256(" ".join([os.uname().machine, *known]).encode()).hexdigest()[:12]
