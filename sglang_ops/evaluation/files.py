"""Writing what people and other programs read: whole, or not at all."""

from __future__ import annotations

import secrets
from pathlib import Path

from sglang_ops.evaluation.results import ResultError


def write_text(file: Path, text: str) -> None:
    """Write `file` by a rename. Half surrogate pairs become question marks. Raises ResultError."""
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(text.encode("utf-8", "replace"))
        temporary.replace(file)
    except OSError as error:
        fix = "Name another file, or make room."
        raise ResultError(f"{file} cannot be written: {error.strerror or error}.", fix=fix) from error
    finally:
        if temporary.exists():
            temporary.unlink()
