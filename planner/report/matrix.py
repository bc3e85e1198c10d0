"""Which cards hold which models: the fewest of each card, as text, CSV, Markdown or JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from planner.foreign import visible
from planner.report.document import Grid, markdown_grid
from planner.report.schema import TABLES, table_csv
from planner.report.tables import Cell
from planner.search.select_fits import Fit


@dataclass(frozen=True, slots=True)
class Matrix:
    """`found`: the verdicts of each model, or why vLLM or this planner does not serve it. `cards`: all, in order."""

    vllm_version: str
    load: str
    cards: tuple[str, ...]
    found: Mapping[str, tuple[Fit, ...] | str]

    @property
    def any_fits(self) -> bool:
        return any(fit.fits for fits in self.found.values() if not isinstance(fits, str) for fit in fits)

    def fewest(self, model: str) -> dict[str, Fit | None]:
        """For each card the verdict with the fewest of it that hold the load; None where no number tried does."""
        fits = self.found[model]
        least: dict[str, Fit | None] = dict.fromkeys(self.cards)
        for fit in () if isinstance(fits, str) else fits:
            if fit.fits and least[fit.gpu] is None:
                least[fit.gpu] = fit
        return least

    def rows(self) -> list[dict[str, Cell]]:
        """A row for each model and card, and one for a model that is refused."""
        rows: list[dict[str, Cell]] = []
        for model, fits in self.found.items():
            refusal = fits if isinstance(fits, str) else ""
            fewest: dict[str, Fit | None] = {"": None} if refusal else self.fewest(model)
            for card, fit in fewest.items():
                rows.append(
                    {
                        "model": model,
                        "vllm_version": self.vllm_version,
                        "gpu": card,
                        "fits": fit is not None,
                        "fewest_gpus": fit.count if fit else None,
                        "tensor_parallel_size": fit.tensor_parallel_size if fit else None,
                        "replicas": fit.replicas if fit else None,
                        "evidence": fit.evidence if fit else "",
                        "refusal": refusal,
                    }
                )
        return rows

    def text(self, form: str) -> str:
        """The answer as "text", "json", "csv" or "markdown"."""
        if form == "csv":
            return table_csv("matrix", self.rows())
        if form == "json":
            return json.dumps({"schema": TABLES["matrix"].schema, "load": self.load, "rows": self.rows()}, indent=2)
        return self._markdown() if form == "markdown" else self._lines()

    @property
    def _title(self) -> str:
        return f"The fewest of each card for {self.load}, vLLM {self.vllm_version}"

    def _lines(self) -> str:
        lines = [self._title]
        for model, fits in self.found.items():
            lines += ["", _line(model)]
            if isinstance(fits, str):
                lines.append(f"  refused: {_line(fits)}")
                continue
            by_count: dict[int, list[str]] = {}
            for card, fit in self.fewest(model).items():
                by_count.setdefault(fit.count if fit else 0, []).append(_line(card))
            none = by_count.pop(0, [])
            lines += [f"  {count:>4}  {', '.join(cards)}" for count, cards in sorted(by_count.items())]
            lines += [f"  none  {', '.join(none)}"] if none else []
        return "\n".join(lines)

    def _markdown(self) -> str:
        rows: list[tuple[str, ...]] = []
        for model, fits in self.found.items():
            cells = ["refused"] * len(self.cards)
            if not isinstance(fits, str):
                cells = [str(fit.count) if fit else "none" for fit in self.fewest(model).values()]
            rows.append((model, *cells))
        grid = Grid(("model", *(f"{card}#" for card in self.cards)), tuple(rows))
        return "\n".join([f"{self._title}.", "", *markdown_grid(grid)])


def _line(text: str) -> str:
    return visible(" ".join(text.split()))
