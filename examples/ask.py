"""Ask every deployed service one question through the OpenAI client: python ask.py INVENTORY"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from openai import OpenAI

QUESTION = "In one sentence: what is a GPU?"


def services(inventory: str) -> list[dict[str, str]]:
    """The services of a fleet, from `sglang-ops status --output json`."""
    command = [str(Path(sys.executable).with_name("sglang-ops")), "status", "-i", inventory, "--output", "json"]
    found: list[dict[str, str]] = json.loads(subprocess.check_output(command))["services"]
    return found


def main() -> int:
    for service in services(sys.argv[1]):
        client = OpenAI(base_url=f"{service['endpoint']}/v1", api_key="none")
        model = client.models.list().data[0].id
        reply = client.chat.completions.create(
            model=model, max_tokens=24, messages=[{"role": "user", "content": QUESTION}]
        )
        print(f"{service['host']}  {service['endpoint']}/v1  model {model}")
        print(f"  asked:    {QUESTION}")
        print(f"  answered: {reply.choices[0].message.content!r}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
