"""Starts SGLang in its container with the key that clients send, which its command line would show to everyone.

SGLang takes the key as a flag only and writes its arguments into its log: so the flag is added here, in the process,
and the log gets something else in its place. Arguments: the module to run, and what that gets.
"""

from __future__ import annotations

import logging
import os
import runpy
import sys
from typing import Any

API_KEY = "SGLANG_OPS_API_KEY"  # as sglang_ops.spec.model.API_KEY


def hide(key: str) -> None:
    """No record of this process's log holds `key`."""
    made = logging.getLogRecordFactory()

    def hiding(*given: Any, **more: Any) -> logging.LogRecord:
        record = made(*given, **more)
        try:
            text = record.getMessage()
        except Exception:  # noqa: BLE001 - a record that cannot be written is for the log's own handlers
            return record
        if key in text:
            record.msg, record.args = text.replace(key, "(hidden)"), ()
        return record

    logging.setLogRecordFactory(hiding)


if __name__ == "__main__":
    given = os.environ.pop(API_KEY)
    hide(given)
    sys.path[0] = ""  # as with `python3 -m`, which this stands for
    module = sys.argv.pop(1)
    sys.argv += ["--api-key", given]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
