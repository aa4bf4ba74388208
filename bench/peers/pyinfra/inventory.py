"""The hosts of the Ansible inventory (JSON) that the environment variable BENCH_INVENTORY names."""

import json
import os
from pathlib import Path

_all = json.loads(Path(os.environ["BENCH_INVENTORY"]).read_text())["all"]
_vars = _all["vars"]

sglang = [
    (
        name,
        {
            "ssh_hostname": host["ansible_host"],
            "ssh_user": _vars["ansible_user"],
            "ssh_key": _vars["ansible_ssh_private_key_file"],
            "ssh_known_hosts_file": _vars["bench_known_hosts"],
            "ssh_strict_host_key_checking": "yes",
            **{key: value for key, value in _vars.items() if key.startswith("sglang_")},
        },
    )
    for name, host in _all["hosts"].items()
]
