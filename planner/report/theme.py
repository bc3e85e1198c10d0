"""How pictures look: one light and one dark theme, GiB axes, fonts with CJK where the machine has one."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from typing import Any, cast

import matplotlib as mpl
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

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
THEMES = {theme.name: theme for theme in (LIGHT, DARK)}
SERIES = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#999999", "#f0e442")
"""Colours of series that are no ledger terms, in the order of use."""


@cache
def _fonts() -> tuple[str, ...]:
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return ("DejaVu Sans", *(name for name in _CJK if name in installed))


@contextmanager
def styled(theme: Theme) -> Iterator[None]:
    """matplotlib's settings for one theme, put back afterwards."""
    settings: Any = {
        "font.family": list(_fonts()),
        "font.size": 12,
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


def new_axes(width: float = 9.0, height: float = 5.0) -> Axes:
    """Axes on a figure of their own, in inches, outside pyplot's global state."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure.add_subplot()


def gib_axis(axis: Any, label: str = "GiB on one GPU") -> None:
    """Ticks in whole or halved GiB on an axis whose data are GiB."""
    axis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 4, 5, 8, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_label_text(label)


def gib(size_bytes: float) -> float:
    return size_bytes / GIB


def tokens_label(tokens: int) -> str:
    """`32768` as `32K`, `20000` as `20,000`."""
    return f"{tokens // 1024}K" if tokens >= 1024 and tokens % 1024 == 0 else f"{tokens:,}"


def readable_on(color: str) -> str:
    """Black or white, whichever is read more easily on `color`."""
    red, green, blue = (int(color[index : index + 2], 16) / 255 for index in (1, 3, 5))
    return "#000000" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "#ffffff"


def png(axes: Axes, theme: Theme) -> bytes:
    """The figure of `axes` as PNG, the same bytes on every run of one matplotlib."""
    buffer = BytesIO()
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    figure = cast(Figure, axes.figure)
    with styled(theme):
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()
