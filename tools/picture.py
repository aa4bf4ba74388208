"""A terminal's screen as SVG: `tmux capture-pane -e -p | python tools/picture.py TITLE > picture.svg`"""

from __future__ import annotations

import io
import re
import sys

from rich.console import Console
from rich.text import Text


def main() -> None:
    screen = sys.stdin.read().rstrip("\n")
    width = max(Text.from_ansi(line).cell_len for line in screen.splitlines())
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(screen), soft_wrap=True)
    picture = console.export_svg(title=sys.argv[1] if len(sys.argv) > 1 else "sglang-ops")
    # The reader's own monospace font will do; a picture should load nothing.
    sys.stdout.write(re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL))


main()
