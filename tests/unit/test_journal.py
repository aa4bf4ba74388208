"""journalctl's JSON, as it really is, becomes lines."""

from __future__ import annotations

import json
import subprocess

from sglang_ops import journal


def test_lines_carry_service_time_and_text_and_the_cursor_goes_on() -> None:
    server = {"__REALTIME_TIMESTAMP": "1700000000123456", "MESSAGE": "hello", "SYSLOG_IDENTIFIER": "sglang-m"}
    systemd = {"__REALTIME_TIMESTAMP": "1700000001000000", "MESSAGE": [104, 105, 255], "UNIT": "sglang-m.service"}
    rows = [server | {"__CURSOR": "a"}, systemd | {"__CURSOR": "b"}]
    lines, cursor = journal.parse("-- noise --\n" + "\n".join(json.dumps(row) for row in rows))
    assert cursor == "b"
    assert lines[0] == {"service": "sglang-m", "time": "2023-11-14T22:13:20.123+00:00", "text": "hello"}
    assert lines[1]["text"] == "hi�"
    assert journal.parse("") == ([], "")


def test_command_matches_services_and_keeps_what_the_user_gave_as_it_is() -> None:
    journalctl = journal.command(["sglang-m", "sglang-n"], "--since", "$(reboot)")
    command = journalctl.replace("journalctl ", "printf '%s\\n' ")
    words = subprocess.check_output(["sh", "-c", command], text=True).splitlines()
    assert "$(reboot)" in words
    assert words[-9:] == [
        "SYSLOG_IDENTIFIER=sglang-m", "+", "UNIT=sglang-m.service", "+", "SYSLOG_IDENTIFIER=sglang-n", "+",
        "UNIT=sglang-n.service", "+", "SYSLOG_IDENTIFIER=sglang-ops",
    ]
    assert words.count("SYSLOG_IDENTIFIER=sglang-m") == 1
