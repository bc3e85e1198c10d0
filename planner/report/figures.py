"""Pictures of one plan: every function takes what planner.report.rows makes and returns matplotlib Axes."""

from __future__ import annotations

from planner.report.bar_figures import breakdown, ledger
from planner.report.curve_figures import load, media
from planner.report.variants_figure import variants

__all__ = ["breakdown", "ledger", "load", "media", "variants"]
