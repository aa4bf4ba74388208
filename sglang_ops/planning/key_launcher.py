"""Starts SGLang in its container with the key that clients send, which its command line would show to everyone.

SGLang takes the key as a flag only and writes its arguments into its log: so the flag is added in the process, and the
log gets something else in its place. The text of this program is the `-c` of the container's Python.
"""

from sglang_ops.spec.model import API_KEY

PROGRAM = f"""\
import logging, os, runpy, sys
key, made = os.environ.pop("{API_KEY}"), logging.getLogRecordFactory()
def hiding(*given, **more):
    record = made(*given, **more)
    try:
        text = record.getMessage()
    except Exception:
        return record
    if key in text:
        record.msg, record.args = text.replace(key, "(hidden)"), ()
    return record
logging.setLogRecordFactory(hiding)
module = sys.argv.pop(1)
sys.argv += ["--api-key", key]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""
