"""A filter as the last words of a command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..bpf import Filter


def add_filter(parser: argparse.ArgumentParser) -> None:
    about = "only frames that match, as tcpdump takes it: udp port 53"
    parser.add_argument("filter", metavar="FILTER", nargs="*", help=about)


def filter_of(parser: argparse.ArgumentParser, words: Sequence[str]) -> Filter | None:
    """None where there are no words; wrong ones are wrong usage. Raises LibraryMissing."""
    try:
        return Filter(" ".join(words)) if words else None
    except ValueError as error:
        parser.error(str(error))
