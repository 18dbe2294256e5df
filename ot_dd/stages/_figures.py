"""The report's figures: inline SVG that follows the page's colours, and image strips."""

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from ot_dd.stages._html import Html, join, tag

PALETTE = 10  # --c0 .. --c9 in the style sheet
MAX_POINTS = 600  # of one scatter; more only make the page slow
MAX_STRIP = 10  # images of one class
STRIP_PIXELS = 64  # height of one image in a strip, before the page scales it


class Figures(NamedTuple):
    """The arrays behind the report's pictures; whatever is empty is left out.

    Attributes:
      class_names: one per class C.
      real: real images, uint8 `[C, k, h, w, c]`.
      sets: by name, uint8 `[C, ipc, h, w, c]`.
      latents_real: 2-D projection of real latents `[n, 2]`.
      latents_real_labels: their classes `[n]`.
      latents_synthetic: by set name, in the same projection `[m, 2]`.
      latents_synthetic_labels: by set name, or one array for all `[m]`.
      transport_lines: (x0, y0, x1, y1) of a plan between latents of one class `[k, 4]`.
      guidance_trace: `step`, `with` and `without`: OT distance along sampling.
    """

    class_names: Sequence[str] = ()
    real: np.ndarray | None = None
    sets: Mapping[str, np.ndarray] = {}
    latents_real: np.ndarray | None = None
    latents_real_labels: np.ndarray | None = None
    latents_synthetic: Mapping[str, np.ndarray] = {}
    latents_synthetic_labels: Mapping[str, np.ndarray] | np.ndarray | None = None
    transport_lines: np.ndarray | None = None
    guidance_trace: Mapping[str, Sequence[float]] | None = None


class Series(NamedTuple):
    """Runs drawn on one line of a dot plot, with their mean and deviation."""

    label: str
    runs: Sequence[float]
    mean: float
    std: float | None
    text: str


class DotRow(NamedTuple):
    """A named row of a dot plot; the first series is filled unless `hollow`."""

    name: str
    series: Sequence[Series]
    color: int
    main: bool = False
    hollow: bool = False


def color(index: int) -> str:
    """Returns a style-sheet colour, which differs between light and dark."""
    return f"var(--c{index % PALETTE})"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Returns about `count` round numbers within [low, high]."""
    span = high - low
    if not span > 0:
        return [low]
    scale = 10.0 ** math.floor(math.log10(span / count))
    step = min((1, 2, 2.5, 5, 10), key=lambda m: abs(span / (m * scale) - count))
    step *= scale
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Returns powers of ten within [low, high], with 2 and 5 when they are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1,), (1, 3), (1, 2, 5)):
        found = [d * 10.0**p for p in powers for d in digits]
        found = [t for t in found if low * 0.999 <= t <= high * 1.001]
        if len(found) > 2:
            break
    return found[:: max(1, len(found) // 6)]


def number(value: float) -> str:
    """Formats a tick without noise digits."""
    if value and (abs(value) >= 1e5 or abs(value) < 1e-3):
        mantissa, exponent = f"{value:.0e}".split("e")
        return f"{mantissa}e{int(exponent)}".replace("-", "−")
    return f"{value:,.6g}".replace("-", "−")


def legend(entries: Sequence[tuple[str, str]]) -> Html:
    """Builds a legend of (kind, label), kind being `"shape:colour"` or a colour.

    Shapes are dot, run (a faint dot), ring, bar and dash; a colour alone is a line.
    """
    spans = []
    for kind, label in entries:
        shape, _, ink = kind.rpartition(":")
        if shape == "dot":
            mark = tag("circle", cx=7, cy=7, r=5, fill=ink)
        elif shape == "run":
            mark = tag("circle", cx=7, cy=7, r=3, fill=ink, opacity=0.35)
        elif shape == "ring":
            mark = tag("circle", cx=7, cy=7, r=4, fill="none", stroke=ink, **_THICK)
        elif shape == "bar":
            mark = tag("line", x1=0, x2=14, y1=7, y2=7, stroke=ink, stroke_width=3)
        elif shape == "dash":
            mark = tag("line", x1=7, x2=7, y1=0, y2=14, stroke=ink, **_DASH)
        else:
            mark = tag("line", x1=0, x2=14, y1=7, y2=7, stroke=ink, stroke_width=2.5)
        svg = tag("svg", mark, viewBox="0 0 14 14", aria_hidden="true")
        spans.append(tag("span", svg, label))
    return tag("div", *spans, class_="legend")


_THICK = {"stroke_width": 2}
_DASH = {"stroke_width": 1.5, "stroke_dasharray": "4 3"}


def figure(title: str, caption: str, *content) -> Html:
    """Frames a figure with its title and a line on how to read it."""
    head = tag("figcaption", tag("h3", title), tag("p", caption) if caption else None)
    return tag("figure", head, *content, class_="card")


def dot_plot(
    rows: Sequence[DotRow],
    *,
    label: str,
    lines: Sequence[float] = (),
    decimals: int = 1,
) -> Html:
    """Draws runs, means and deviations of every row on one shared axis.

    Rows are laid out by the page and only the marks are SVG, in percent of the track:
    text keeps its size on a phone.

    Args:
      rows: what to draw, top to bottom.
      label: the axis, with its unit.
      lines: values marked across all rows.
      decimals: of the numbers in tooltips.
    """
    values = [*lines]
    for row in rows:
        for s in row.series:
            spread = s.std or 0.0
            values += [*s.runs, s.mean - spread, s.mean + spread]
    low, high = min(values), max(values)
    pad = 0.04 * (high - low) or 0.05 * abs(high) or 1.0
    low, high = low - pad, high + pad

    def at(value):
        return f"{100 * (value - low) / (high - low):.2f}%"

    shown = ticks(low, high)
    rules = [_rule(at(t), class_="grid") for t in shown]
    rules += [_rule(at(v), stroke="var(--muted)", **_DASH) for v in lines]
    cells = []
    for row in rows:
        numbers = [
            tag("span", s.text, class_="soft" if i or row.hollow else None)
            for i, s in enumerate(row.series)
        ]
        # a nested viewport at half height: marks stay centred when the name wraps
        marks = tag("svg", _marks(row, at, decimals), y="50%")
        track = tag("svg", *rules, marks, role="img", aria_label=row.name)
        height = f"min-height:{16 + 18 * len(row.series)}px"
        cells += [
            tag("div", row.name, class_="name main" if row.main else "name"),
            tag("div", track, class_="track", style=height),
            tag("div", *numbers, class_="value"),
        ]
    axis = [tag("text", number(t), x=at(t), y=16, text_anchor="middle") for t in shown]
    axis.append(tag("text", label, x="50%", y=35, text_anchor="middle"))
    cells.append(tag("svg", *axis, height=40, class_="foot", aria_hidden="true"))
    return tag("div", *cells, class_="dots")


def _rule(x: str, **look) -> Html:
    return tag("line", x1=x, x2=x, y1=0, y2="100%", **look)


def _marks(row: DotRow, at: Callable[[float], str], decimals: int) -> list[Html]:
    """The marks of one row, their y counted from the row's middle."""
    ink, marks = color(row.color), []
    for i, s in enumerate(row.series):
        y = 18 * i - 9 * (len(row.series) - 1)
        tip = tag("title", f"{row.name}, {s.label}: {s.text}")
        if s.std:
            look = {"stroke": ink, "stroke_width": 3, "stroke_linecap": "round"}
            ends = {"x1": at(s.mean - s.std), "x2": at(s.mean + s.std)}
            marks.append(tag("line", tip, y1=y, y2=y, opacity=0.55, **ends, **look))
        for run in s.runs if len(s.runs) > 1 else ():
            look = {"r": 3, "fill": ink, "opacity": 0.35}
            value = tag("title", f"{run:.{decimals}f}")
            marks.append(tag("circle", value, cx=at(run), cy=y, **look))
        look = {"class_": "mean", "fill": ink, "r": 6}
        if i or row.hollow:
            look = {"class_": "hollow", "stroke": ink, "stroke_width": 2, "r": 5}
        marks.append(tag("circle", tip, cx=at(s.mean), cy=y, **look))
    return marks


def line_chart(
    lines: Sequence[tuple[str, Sequence[float], Sequence[float], str]],
    *,
    x_label: str,
    y_label: str,
    reverse: bool = False,
) -> Html:
    """Draws lines (label, x, y, colour); positive y over two decades goes logarithmic.

    Args:
      lines: what to draw; values that are not finite break nothing, they are skipped.
      x_label: horizontal axis.
      y_label: vertical axis.
      reverse: largest x at the left, as along a sampler that counts steps down.
    """
    width, height, left, top, bottom = 440, 260, 58, 22, 42
    kept = []
    for label, x, y, ink in lines:
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        finite = np.isfinite(x) & np.isfinite(y)
        x, y = x[finite], y[finite]
        stride = max(1, math.ceil(len(x) / 300))
        if len(x):
            pick = np.unique(np.r_[np.arange(0, len(x), stride), len(x) - 1])
            kept.append((label, x[pick], y[pick], ink))
    if not kept:
        return tag("p", "No finite values were recorded.", class_="note")
    xs = np.concatenate([x for _, x, _, _ in kept])
    ys = np.concatenate([y for _, _, y, _ in kept])
    log = ys.min() > 0 and ys.max() / ys.min() > 100
    low, high = ys.min(), ys.max()
    if not log:
        pad = 0.06 * (high - low) or 0.5 * abs(high) or 1.0
        low, high = (0.0 if 0 <= low < 0.3 * high else low - pad), high + pad
    x_low, x_high = xs.min(), xs.max()
    if x_high == x_low:
        x_low, x_high = x_low - 1, x_high + 1

    def across(x):
        share = (x - x_low) / (x_high - x_low)
        return left + (width - left - 12) * (1 - share if reverse else share)

    def up(y):
        ends = np.log([low, high]) if log else (low, high)
        share = ((np.log(y) if log else y) - ends[0]) / (ends[1] - ends[0])
        return height - bottom - (height - bottom - top) * share

    marks = []
    for t in log_ticks(low, high) if log else ticks(low, high):
        y = f"{up(t):.1f}"
        marks.append(tag("line", x1=left, x2=width - 12, y1=y, y2=y, class_="grid"))
        marks.append(
            tag("text", number(t), x=left - 8, y=y, dy="0.35em", text_anchor="end")
        )
    for t in ticks(x_low, x_high):
        x, y = f"{across(t):.1f}", height - bottom
        marks.append(tag("text", number(t), x=x, y=y + 17, text_anchor="middle"))
    base = height - bottom
    marks.append(tag("line", x1=left, x2=width - 12, y1=base, y2=base, class_="axis"))
    middle = (left + width - 12) / 2
    marks.append(tag("text", x_label, x=middle, y=height - 6, text_anchor="middle"))
    scale = f"{y_label} (log scale)" if log else y_label
    marks.append(tag("text", scale, x=0, y=10))
    for label, x, y, ink in kept:
        points = " ".join(
            f"{a:.1f},{b:.1f}" for a, b in zip(across(x), up(y), strict=True)
        )
        tip = tag("title", f"{label}: {number(y[-1])} at {number(x[-1])}")
        if len(x) == 1:  # A line of one point has no length.
            marks.append(
                tag("circle", tip, cx=across(x)[0], cy=up(y)[0], r=4, fill=ink)
            )
            continue
        marks.append(
            tag(
                "polyline",
                tip,
                points=points,
                fill="none",
                stroke=ink,
                stroke_width=2,
                stroke_linejoin="round",
            )
        )
    chart = tag(
        "svg",
        *marks,
        viewBox=f"0 0 {width} {height}",
        class_="chart",
        role="img",
        aria_label=f"{y_label} by {x_label}",
    )
    entries = [(ink, label) for label, _, _, ink in kept]
    return join(legend(entries) if len(kept) > 1 else None, chart)


class LatentMap:
    """Panels of synthetic latents over the same real ones, which are drawn once."""

    size, margin = 320, 26

    def __init__(self, real, labels, others: Sequence[np.ndarray]):
        real = np.asarray(real, np.float64)
        everything = np.concatenate([real, *[np.asarray(o) for o in others]])
        everything = everything[np.isfinite(everything).all(axis=1)]
        # the rest of a far outlier's panel would be empty: clip to where the mass is
        low, high = np.percentile(everything, [0.2, 99.8], axis=0)
        centre, span = (low + high) / 2, float((high - low).max()) or 1.0
        self.low, self.span = centre - 0.54 * span, 1.08 * span
        self.real, self.labels = real, np.asarray(labels)
        self.drawn = False

    def _at(self, points):
        unit = np.clip((np.asarray(points, np.float64) - self.low) / self.span, 0, 1)
        inner = self.size - self.margin
        return np.stack([self.margin + inner * unit[:, 0], inner * (1 - unit[:, 1])], 1)

    def _cloud(self):
        if self.drawn:
            return tag("use", href="#real-latents")
        self.drawn = True
        stride = max(1, math.ceil(len(self.real) / MAX_POINTS))
        points, labels = self._at(self.real[::stride]), self.labels[::stride]
        circles = [
            tag("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=2.2, fill=color(int(c)))
            for (x, y), c in zip(points, labels, strict=True)
        ]
        return tag("g", *circles, id="real-latents", opacity=0.3)

    def panel(self, name, points, labels, class_names, plan=None) -> Html:
        """Draws one set's points `[m, 2]`, and a plan's lines `[k, 4]` if given."""
        inner, marks = self.size - self.margin, [self._cloud()]
        if plan is not None and len(plan):
            plan = np.asarray(plan)[:400]
            ends = zip(self._at(plan[:, :2]), self._at(plan[:, 2:]), strict=True)
            path = "".join(
                f"M{a[0]:.1f} {a[1]:.1f}L{b[0]:.1f} {b[1]:.1f}" for a, b in ends
            )
            marks.append(
                tag(
                    "path",
                    d=path,
                    stroke="var(--ink)",
                    stroke_width=0.9,
                    opacity=0.55,
                    fill="none",
                )
            )
        for (x, y), c in zip(self._at(points), labels, strict=True):
            known = 0 <= c < len(class_names)
            tip = tag("title", class_names[int(c)] if known else f"class {c}")
            marks.append(
                tag(
                    "circle",
                    tip,
                    cx=f"{x:.1f}",
                    cy=f"{y:.1f}",
                    r=4.5,
                    fill=color(int(c)),
                    stroke="var(--ink)",
                    stroke_width=1.2,
                )
            )
        frame = [
            tag(
                "rect",
                x=self.margin,
                y=0,
                width=inner,
                height=inner,
                fill="none",
                class_="axis",
            ),
            tag(
                "text",
                "first component",
                x=self.margin + inner / 2,
                y=self.size - 8,
                text_anchor="middle",
            ),
            tag(
                "text",
                "second component",
                x=-inner / 2,
                y=15,
                text_anchor="middle",
                transform="rotate(-90)",
            ),
        ]
        return tag(
            "svg",
            *frame,
            *marks,
            viewBox=f"0 0 {self.size} {self.size}",
            class_="chart",
            role="img",
            aria_label=f"latents of {name}",
        )


def strip(images: np.ndarray, *, alt: str, columns: int = MAX_STRIP) -> Html:
    """Returns the first images of `[n, h, w, c]` side by side as one inline PNG.

    It is as wide as n of `columns` equal columns, so that strips of few and of many
    images show them at one size.

    Small images are repeated by pixel to a common height, large ones averaged down, so
    that the page stays small and pixels stay sharp; gaps are transparent.
    """
    images = np.asarray(images)[:columns]
    n, h, w, c = images.shape
    up = max(1, STRIP_PIXELS // max(h, w))
    if max(h, w) > 2 * STRIP_PIXELS:
        size = (round(w * 96 / max(h, w)) or 1, round(h * 96 / max(h, w)) or 1)
        images = np.stack([_resized(image, size) for image in images])
        n, h, w, c = images.shape
    rgb = np.repeat(images, 3, axis=-1) if c == 1 else images[..., :3]
    rgb = rgb.repeat(up, axis=1).repeat(up, axis=2)
    h, w = rgb.shape[1:3]
    gap = max(2, w // 20)
    sheet = np.zeros((h, n * w + (n - 1) * gap, 4), np.uint8)
    for i, image in enumerate(rgb):
        start = i * (w + gap)
        sheet[:, start : start + w, :3] = image
        sheet[:, start : start + w, 3] = 255
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    share = 100 * sheet.shape[1] / (columns * w + (columns - 1) * gap)
    return tag(
        "img",
        src=f"data:image/png;base64,{data}",
        alt=alt,
        width=sheet.shape[1],
        height=h,
        style=f"width:{share:.1f}%",
    )


def _resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    squeezed = image[..., 0] if image.shape[-1] == 1 else image[..., :3]
    small = np.asarray(Image.fromarray(squeezed).resize(size, Image.Resampling.BOX))
    return small.reshape(size[1], size[0], -1)
