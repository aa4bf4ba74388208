"""Student's t distribution, of any freedom, without further packages. Pure."""

from __future__ import annotations

import math


def t_quantile(probability: float, freedom: float) -> float:
    """Quantile of Student's t distribution, for a probability of at least one half."""
    low, high = 0.0, 1.0
    while t_cumulative(high, freedom) < probability and high < 1e12:
        low, high = high, high * 2
    for _ in range(200):
        middle = (low + high) / 2
        if middle in {low, high}:
            break
        low, high = (middle, high) if t_cumulative(middle, freedom) < probability else (low, middle)
    return low


def t_cumulative(value: float, freedom: float) -> float:
    """Distribution function of Student's t."""
    tail = 0.5 * _incomplete_beta(freedom / (freedom + value * value), freedom / 2, 0.5)
    return 1 - tail if value > 0 else tail


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """Regularised incomplete beta function, by its continued fraction (Numerical Recipes, 6.4)."""
    if x <= 0 or x >= 1:
        return 0.0 if x <= 0 else 1.0
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    if x < (a + 1) / (a + b + 2):
        return front * _fraction(x, a, b) / a
    return 1 - front * _fraction(1 - x, b, a) / b


def _fraction(x: float, a: float, b: float) -> float:
    floor = 1e-300
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1) or floor)
    result = d
    for m in range(1, 500):
        for numerator in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / (1 + numerator * d or floor)
            c = 1 + numerator / c or floor
            result *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return result
