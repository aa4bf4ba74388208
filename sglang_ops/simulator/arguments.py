"""SGLang's command line, rebuilt from the catalogue: what the real parser accepts and how it refuses."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from sglang_ops.catalog import catalogue
from sglang_ops.catalog.parser import add_arguments

from . import SGLANG_VERSION


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of one server. Like SGLang, prints to stderr and exits 2 where they are wrong."""
    return parser().parse_args(list(argv))


def parser() -> argparse.ArgumentParser:
    """SGLang's parser; its name is SGLang's too, so that error messages are the same."""
    built = argparse.ArgumentParser(
        prog="sglang serve", description=f"Simulator of SGLang {SGLANG_VERSION}: runs no model."
    )
    ServerArgs.add_cli_args(built)
    return built


class ServerArgs:
    """Where SGLang keeps its list; who asks an image for its arguments asks here."""

    @staticmethod
    def add_cli_args(parser: argparse.ArgumentParser) -> None:
        add_arguments(parser, catalogue(SGLANG_VERSION))
