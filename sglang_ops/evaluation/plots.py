"""Plots as static SVG for the reports: no script, colours from the page's style sheet, every text escaped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH = 680
HALF = 500  # of `lines`: two stand side by side
NARROW = 330  # of a histogram: three stand side by side
ROW = 26  # height of one row of `intervals`
AXIS = 34  # room for the axis below a plot
LETTER = 7.3  # width of a letter, for labels beside rows
LONGEST_LABEL = 34  # letters
BINS = 20
SERIES = 6  # the style sheet has so many colours


@dataclass(frozen=True)
class Row:
    """One value with its interval; `text` stands at the right end, `hint` shows under the pointer."""

    label: str
    value: float
    interval: tuple[float, float]
    text: str
    hint: str = ""


@dataclass(frozen=True)
class Point:
    x: float
    y: float
    hint: str


@dataclass(frozen=True)
class Line:
    """One series of `lines`, in the order of its points."""

    name: str
    points: Sequence[Point]


def intervals(rows: Sequence[Row], *, title: str, share: bool, bars: bool = False) -> Markup:
    """Values with their intervals, one row each: dots, or bars from zero. `share`: the axis goes from 0 to 100 %."""
    low = 0.0 if share or bars else min(row.interval[0] for row in rows)
    high = 1.0 if share else max(row.interval[1] for row in rows)
    scale = _Scale(min(low, *(row.interval[0] for row in rows)), high)
    left = min(LONGEST_LABEL, max(len(row.label) for row in rows)) * LETTER + 14
    right = WIDTH - max(len(row.text) for row in rows) * LETTER - 16
    height = len(rows) * ROW

    def at(value: float) -> float:
        return left + scale.share(value) * (right - left)

    parts = [_axis_below(scale, at, height, "%" if share else "")]
    for number, row in enumerate(rows):
        y = number * ROW + ROW / 2
        a, b, x = at(row.interval[0]), at(row.interval[1]), at(row.value)
        parts.append(Markup('<g><title>{}</title><rect x="0" y="{}" width="{}" height="{}" class="hit"/>').format(
            row.hint or f"{row.label}: {row.text}", _n(y - ROW / 2), WIDTH, ROW
        ))  # fmt: skip
        parts.append(_text(left - 10, y + 4, _shortened(row.label), "end"))
        if bars:
            parts.append(_rect(at(max(0.0, scale.low)), y - 7, x - at(max(0.0, scale.low)), 14, "bar"))
        parts.append(Markup('<path d="M{a} {y}H{b}M{a} {t}v8M{b} {t}v8" class="{kind}"/>').format(
            a=_n(a), b=_n(b), y=_n(y), t=_n(y - 4), kind="whisker over" if bars else "whisker"
        ))  # fmt: skip
        if not bars:
            parts.append(Markup('<circle cx="{}" cy="{}" r="4.5" class="dot"/>').format(_n(x), _n(y)))
        parts += [_text(right + 12, y + 4, row.text, "start"), Markup("</g>")]
    return _svg(parts, height + AXIS, title)


def histogram(values: Sequence[float], *, title: str, unit: str, whole: bool = False) -> Markup:
    """How often which value occurs. Half the values lie below the marked line. `whole`: the values are counts."""
    highest = max(values) + 1 if whole else max(values)  # a count has a place as wide as one
    scale = _Scale(0.0 if min(values) >= 0 else min(values), highest, whole=whole, ticks=4)
    width = (scale.high - scale.low) / BINS
    if whole:
        width = max(1.0, math.ceil(width))
    count = max(1, math.ceil((scale.high - scale.low) / width - 1e-9))
    bins = [0] * count
    for value in values:
        bins[min(count - 1, int((value - scale.low) / width))] += 1
    left, right, height = 40.0, float(NARROW - 20), 130.0
    most = _Scale(0.0, float(max(bins)), whole=True, ticks=4)

    def at(value: float) -> float:
        return left + scale.share(value) * (right - left)

    parts = [_axis_left(most, height - 8, left, right, top=8.0), _axis_below(scale, at, height, unit, grid=False)]
    for number, found in enumerate(bins):
        low, high = scale.low + number * width, min(scale.low + (number + 1) * width, scale.high)
        size = most.share(found) * (height - 8)
        span = number_of(low) if whole and width == 1 else f"{number_of(low)} to {number_of(high - whole)}"
        hint = f"{span} {unit}: {found}"
        parts.append(_rect(at(low) + 1, height - size, max(at(high) - at(low) - 2, 1), size, "bar", hint))
    middle = at(quantile(values, 0.5))
    parts.append(Markup('<path d="M{} 0V{}" class="median"/>').format(_n(middle), _n(height)))
    near_end = middle > (left + right) / 2
    label = f"median {number_of(quantile(values, 0.5))} {unit}"
    parts.append(_text(middle + (-6 if near_end else 6), 10, label, "end" if near_end else "start"))
    return _svg(parts, height + AXIS, title, NARROW)


def lines(series: Sequence[Line], *, title: str, x_unit: str, y_unit: str) -> Markup:
    """Lines through points, one colour each, with a legend where there are several."""
    points = [point for line in series for point in line.points]
    across = _Scale(0.0, max(point.x for point in points))
    up = _Scale(0.0, max(point.y for point in points))
    legend = 18.0 * len(series) + 6 if len(series) > 1 else 0.0
    left, right, top, height = 62.0, float(HALF - 20), 22 + legend, 230 + legend

    def at(value: float) -> float:
        return left + across.share(value) * (right - left)

    parts = [_axis_left(up, height - top, left, right, top=top), _axis_below(across, at, height, "", grid=False)]
    parts += [_text(left - 48, top - 10, y_unit, "start"), _text(right, height + 30, x_unit, "end")]
    for number, line in enumerate(series):
        kind = f"s{number % SERIES}"
        spots = [(at(point.x), height - up.share(point.y) * (height - top), point.hint) for point in line.points]
        path = "L".join(f"{_n(x)} {_n(y)}" for x, y, _ in spots)
        parts.append(Markup('<path d="M{}" class="line {}"/>').format(path, kind))
        parts += [
            Markup('<g><title>{}</title><circle cx="{}" cy="{}" r="4" class="spot {}"/></g>').format(
                hint, _n(x), _n(y), kind
            )
            for x, y, hint in spots
        ]
        if legend:
            parts.append(
                Markup('<circle cx="{}" cy="{}" r="4" class="spot {}"/>').format(_n(left), 8 + number * 18, kind)
            )
            parts.append(_text(left + 12, 12 + number * 18, line.name, "start"))
    return _svg(parts, height + AXIS, title, HALF)


def quantile(values: Sequence[float], part: float) -> float:
    """The value below which `part` of all lie, between neighbours linearly."""
    ordered = sorted(values)
    place = part * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


class _Scale:
    """A range of values, widened to round ends, and its ticks."""

    def __init__(self, low: float, high: float, *, whole: bool = False, ticks: int = 5) -> None:
        high = high if high > low else low + 1
        raw = (high - low) / ticks
        size = 10.0 ** math.floor(math.log10(raw))
        self.step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= raw * 0.999)
        if whole:
            self.step = max(1.0, math.ceil(self.step))
        self.low = math.floor(low / self.step + 1e-9) * self.step
        self.high = math.ceil(high / self.step - 1e-9) * self.step

    def share(self, value: float) -> float:
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        count = round((self.high - self.low) / self.step)
        return [self.low + number * self.step for number in range(count + 1)]


def _axis_below(scale: _Scale, at: object, height: float, unit: str, *, grid: bool = True) -> Markup:
    place = at if callable(at) else float
    parts = []
    for tick in scale.ticks():
        x = place(tick)
        parts.append(Markup('<path d="M{} {}V{}" class="{}"/>').format(
            _n(x), 0 if grid else _n(height), _n(height + 4), "grid" if grid else "tick"
        ))  # fmt: skip
        label = f"{tick * 100:.0f} %" if unit == "%" else number_of(tick)
        parts.append(_text(x, height + 17, label, "middle", "axis"))
    last = place(scale.high)
    if unit not in {"", "%"}:
        parts.append(_text(last, height + 31, unit, "end", "axis"))
    return Markup("").join(parts)


def _axis_left(scale: _Scale, height: float, left: float, right: float, *, top: float) -> Markup:
    parts = []
    for tick in scale.ticks():
        y = top + height - scale.share(tick) * height
        parts.append(Markup('<path d="M{} {}H{}" class="grid"/>').format(_n(left), _n(y), _n(right)))
        parts.append(_text(left - 8, y + 4, number_of(tick), "end", "axis"))
    return Markup("").join(parts)


def _svg(parts: Sequence[Markup], height: float, title: str, width: int = WIDTH) -> Markup:
    return Markup(
        '<svg viewBox="0 0 {w} {h}" width="{w}" height="{h}" role="img" aria-label="{title}">{body}</svg>'
    ).format(w=width, h=_n(height), title=title, body=Markup("").join(parts))


def _rect(x: float, y: float, width: float, height: float, kind: str, hint: str = "") -> Markup:
    title = Markup("<title>{}</title>").format(hint) if hint else Markup("")
    return Markup('<rect x="{}" y="{}" width="{}" height="{}" class="{}">{}</rect>').format(
        _n(x), _n(y), _n(max(width, 0)), _n(max(height, 0)), kind, title
    )


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> Markup:
    place = Markup(' class="{}"').format(kind) if kind else Markup("")
    return Markup('<text x="{}" y="{}" text-anchor="{}"{}>{}</text>').format(_n(x), _n(y), anchor, place, escape(text))


def _shortened(label: str) -> str:
    return label if len(label) <= LONGEST_LABEL else label[: LONGEST_LABEL - 1] + "…"


def number_of(value: float) -> str:
    """As few digits as tell it apart: 12,000; 340; 1.5; 0.025."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _n(value: float) -> str:
    """A coordinate, to a tenth."""
    return f"{value:.1f}".removesuffix(".0")
