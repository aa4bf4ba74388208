"""Intervals and tests of shares: of one, and of two over the same items. Pure."""

from __future__ import annotations

import math
from statistics import NormalDist


def wilson(share: float, count: float, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share of `count` observations."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    centre = share + z * z / (2 * count)
    reach = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    low = 0.0 if share == 0 else max(0.0, (centre - reach) / scale)
    high = 1.0 if share == 1 else min(1.0, (centre + reach) / scale)
    return low, high


def newcombe(table: tuple[int, int, int, int], confidence: float = 0.95) -> tuple[float, float]:
    """Interval of the difference of two paired shares, second minus first (Newcombe 1998, method 10).

    `table`: items right in both, only in the second, only in the first, in neither.
    """
    both, second_only, first_only, neither = table
    count = sum(table)
    p2, p1 = (both + second_only) / count, (both + first_only) / count
    (low2, high2), (low1, high1) = wilson(p2, count, confidence), wilson(p1, count, confidence)
    margins = (both + second_only) * (first_only + neither) * (both + first_only) * (second_only + neither)
    product = float(both * neither - second_only * first_only)
    if product > 0:  # Newcombe's continuity correction of the correlation
        product = max(product - count / 2, 0.0)
    phi = product / math.sqrt(margins) if margins else 0.0

    def reach(x: float, y: float) -> float:
        return math.sqrt(max(x * x - 2 * phi * x * y + y * y, 0.0))

    delta = p2 - p1
    return max(-1.0, delta - reach(p2 - low2, high1 - p1)), min(1.0, delta + reach(high2 - p2, p1 - low1))


def mcnemar(better: int, worse: int) -> float:
    """Two-sided exact p-value: as many of the items that changed rose as fell."""
    changed, fewer = better + worse, min(better, worse)
    if changed == 0:
        return 1.0
    tail = sum(math.comb(changed, k) for k in range(fewer + 1))
    return min(1.0, float(2 * tail / 2**changed))
