"""`python -m sglang_ops`"""

from sglang_ops.cli import main

main()
