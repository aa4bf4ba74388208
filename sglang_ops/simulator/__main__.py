"""`python3 -m sglang_ops.simulator --model-path MODEL …`, the same as `python3 -m sglang.launch_server …`."""

from __future__ import annotations

from .main import main

main()
