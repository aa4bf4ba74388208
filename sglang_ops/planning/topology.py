"""Which GPUs are joined best: the matrix of `nvidia-smi topo -m`, and the choice that follows from it.

What ranks share in tensor parallelism goes through every link of the set, so the worst link counts first, then how
many there are of it, then the next worst.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import combinations

# From nvidia-smi's own legend, worst first; NV# (a number of NVLinks) is better than all of them.
_CLASSES = ("SYS", "NODE", "PHB", "PXB", "PIX")
WORST = _CLASSES[0]
_ESCAPE = re.compile(r"\x1b\[[0-9;]*m")
_COLUMN = re.compile(r"GPU(\d+)\b")
_LINK = re.compile(rf"NV\d+|{'|'.join(_CLASSES)}")

Links = Mapping[tuple[int, int], str]


def links(matrix: str) -> dict[tuple[int, int], str]:
    """The link between every two GPUs (lower number first) that the text of `nvidia-smi topo -m` tells.

    Columns of network cards and affinities follow those of the GPUs and are not read. What is no such matrix is {}.
    """
    lines = [line.strip() for line in _ESCAPE.sub("", matrix).splitlines()]
    header, *rows = [line for line in lines if _COLUMN.match(line)] or [""]
    columns = [int(number) for number in _COLUMN.findall(header)]
    found: dict[tuple[int, int], str] = {}
    for name, *cells in map(str.split, rows):
        row = int(_COLUMN.findall(name)[0])
        for column, cell in zip(columns, cells, strict=False):
            if row < column and _LINK.fullmatch(cell):
                found[row, column] = cell
    return found


def rank(link: str) -> int:
    """Higher is better: NV18 over NV4 over PIX … SYS; 0 for a link of which nothing is known."""
    if link.startswith("NV"):
        return len(_CLASSES) + int(link[2:])
    return _CLASSES.index(link) + 1 if link in _CLASSES else 0


def joining(gpus: Sequence[int], known: Links) -> str:
    """The worst link among `gpus`; "" for a single one and where any link is unknown."""
    between = [known.get(pair, "") for pair in combinations(sorted(gpus), 2)]
    return min(between, key=rank, default="")


def best(free: Sequence[int], count: int, known: Links) -> tuple[int, ...]:
    """The `count` of `free` that are joined best, ascending; of equal sets the one with the lowest numbers.

    Exact: a set is given up once it cannot become better than the best one found. 16 GPUs take milliseconds.
    """
    ordered = sorted(free)
    cost = _costs(ordered, known)
    chosen: tuple[int, ...] = tuple(ordered[:count])
    least = sum(cost[pair] for pair in combinations(chosen, 2))

    def extend(taken: tuple[int, ...], spent: int, rest: list[tuple[int, int]]) -> None:
        """`rest` are the GPUs that may follow, each with what its links to those taken cost."""
        nonlocal chosen, least
        need = count - len(taken)
        if need == 0:
            if spent < least:
                chosen, least = taken, spent
            return
        while len(rest) >= need:
            if spent + sum(sorted(price for _, price in rest)[:need]) >= least:
                return
            (gpu, price), *rest = rest
            dearer = [(other, so_far + cost[gpu, other]) for other, so_far in rest]
            extend((*taken, gpu), spent + price, dearer)

    extend((), 0, [(gpu, 0) for gpu in ordered])
    return chosen


def _costs(gpus: Sequence[int], known: Links) -> dict[tuple[int, int], int]:
    """What each link costs: one of a worse class is more than all links of better classes together."""
    pairs = list(combinations(gpus, 2))
    ranks = {pair: rank(known.get(pair, "")) for pair in pairs}
    better = sorted(set(ranks.values()), reverse=True)
    return {pair: (len(pairs) + 1) ** better.index(ranks[pair]) - 1 for pair in pairs}
