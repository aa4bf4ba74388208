"""A stand-in for an SGLang server: its command line, HTTP surface, signals and faults, but no model.

For tests that need faults or many servers, and never a substitute for the engine: it names itself in its
log, in `/server_info`, as `owned_by` of its models, in the `server` header and in every text it may choose freely.
It needs nothing but the standard library. The reference is the real SGLang named by `SGLANG_VERSION`.
"""

from __future__ import annotations

NAME = "sglang-simulator"
SGLANG_VERSION = "0.5.23"
