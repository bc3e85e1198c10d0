"""How pictures look: one light and one dark theme, GiB axes, fonts with CJK where the machine has one."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from textwrap import fill
from typing import Any, cast

import matplotlib as mpl
from matplotlib import colormaps, font_manager
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from planner.foreign import visible
from planner.units import GIB

_CJK = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Source Han Sans SC",
    "Source Han Sans CN",
    "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei",
    "PingFang SC",
    "Hiragino Sans GB",
    "Microsoft YaHei",
    "SimHei",
    "Droid Sans Fallback",
)
_CJK_FILES = ("cjk", "sourcehansans", "wqy-", "pingfang", "hiragino", "msyh", "simhei", "droidsansfallback")
DPI = 150


@dataclass(frozen=True, slots=True)
class Theme:
    """Colours of everything but the ledger's terms, whose colours are planner.report.terms' in both themes."""

    name: str
    paper: str
    ink: str
    faint: str
    limit: str
    budget: str


LIGHT = Theme("light", "#ffffff", "#1a1a1a", "#d9d9d9", "#b00020", "#1a1a1a")
DARK = Theme("dark", "#14171c", "#ececec", "#3a3f47", "#ff8a80", "#ececec")
SERIES = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#999999", "#f0e442")
"""Colours of series that are no ledger terms, in the order of use."""


@cache
def fonts() -> tuple[str, ...]:
    """Fonts in the order in which letters are looked for: matplotlib's own, then those with Chinese that are here.

    matplotlib keeps a list of fonts from the day of its first use; one that was installed since is added to it.
    """
    log = logging.getLogger("matplotlib.font_manager")
    log.addFilter(lambda record: "font weight" not in record.getMessage())  # of fonts that have one weight only
    installed = {font.name for font in font_manager.fontManager.ttflist}
    if installed.isdisjoint(_CJK):
        for path in sorted(font_manager.findSystemFonts()):
            if any(name in path.casefold() for name in _CJK_FILES):
                font_manager.fontManager.addfont(path)
        installed = {font.name for font in font_manager.fontManager.ttflist}
    return ("DejaVu Sans", *(name for name in _CJK if name in installed))


@contextmanager
def styled(theme: Theme) -> Iterator[None]:
    """matplotlib's settings for one theme, put back afterwards."""
    settings: Any = {
        "font.family": list(fonts()),
        "font.size": 12,
        "text.parse_math": False,
        "axes.titlesize": 13,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.labelsize": 12,
        "xtick.labelsize": 11,
        "ytick.labelsize": 11,
        "figure.facecolor": theme.paper,
        "axes.facecolor": theme.paper,
        "savefig.facecolor": theme.paper,
        "text.color": theme.ink,
        "axes.labelcolor": theme.ink,
        "axes.edgecolor": theme.ink,
        "axes.titlecolor": theme.ink,
        "xtick.color": theme.ink,
        "ytick.color": theme.ink,
        "grid.color": theme.faint,
        "grid.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "svg.hashsalt": "vplan",
    }
    with mpl.rc_context(settings):
        yield


def new_axes(width: float = 8.0, height: float = 4.6) -> Axes:
    """Axes on a figure of their own, in inches, outside pyplot's global state. With letters of 11 points and more, a
    picture of 8 inches is still read when it is shown at half its width."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure.add_subplot()


def titled(axes: Axes, text: str) -> None:
    """A title in at most four lines of the picture's width, from the picture's left edge."""
    figure = cast(Figure, axes.figure)
    lines = fill(visible(text), max(int(figure.get_figwidth() * 8.6), 24), max_lines=4, placeholder=" ...")
    figure.suptitle(lines, x=0.01, ha="left", fontsize=13, fontweight="bold", linespacing=1.25)


_LETTER_WIDTH, _LINE_HEIGHT = 6.6, 13.0
"""Points that a letter and a line of 11-point text take, generously."""

Box = tuple[float, float, float, float]


def text_box(text: str, x: float, y: float, *, left: bool) -> Box:
    """About where 11-point text lies, in points: left, bottom, right, top. It begins at x, or ends there."""
    width = _LETTER_WIDTH * len(text)
    start = x if left else x - width
    return start, y - _LINE_HEIGHT / 2, start + width, y + _LINE_HEIGHT / 2


def boxes_touch(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def ramp(theme: Theme, count: int) -> list[str]:
    """Colours of an ordered series, least first: a part of the cividis map that stands out from the theme's paper, so
    that no line has a ledger term's colour."""
    low, high = (0.0, 0.82) if theme is LIGHT else (0.36, 1.0)
    shares = [low + (high - low) * place / max(count - 1, 1) for place in range(count)]
    return [to_hex(colormaps["cividis"](share)) for share in shares]


def gib_axis(axis: Any, label: str = "GiB on one GPU") -> None:
    """Ticks of an axis of GiB whose limits are set: 1, 2, 4, 8 or 10 GiB apart, parts of one on a short axis."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 4, 8, 10] if high - low > 8 else [1, 2, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_label_text(label)


def gib(size_bytes: float) -> float:
    return size_bytes / GIB


def tokens_label(tokens: int) -> str:
    """`32768` as `32K`, `20000` as `20,000`; 128000 is no round number of K and stays `128,000`."""
    rounded = tokens % 4096 == 0 or (tokens % 1024 == 0 and tokens < 8192)
    return f"{tokens // 1024}K" if tokens >= 1024 and rounded else f"{tokens:,}"


def readable_on(color: str) -> str:
    """Black or white, whichever is read more easily on `color`."""
    red, green, blue = (int(color[index : index + 2], 16) / 255 for index in (1, 3, 5))
    return "#000000" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "#ffffff"


def png(axes: Axes, theme: Theme) -> bytes:
    """The figure of `axes` as PNG, the same bytes on every run of one matplotlib. Letters that no font here has are
    drawn as boxes."""
    buffer = BytesIO()
    figure = cast(Figure, axes.figure)
    with styled(theme), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def box(theme: Theme) -> dict[str, object]:
    """Paper behind a label, so that lines do not run through it."""
    return {"facecolor": theme.paper, "edgecolor": "none", "pad": 1.0}


def empty(axes: Axes, text: str) -> Axes:
    """A picture of nothing but a sentence."""
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes)
    axes.set_axis_off()
    return axes
