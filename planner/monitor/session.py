"""Looking again and again: the server and the cards in, samples to the places that want them."""

from __future__ import annotations

import time
from contextlib import ExitStack, closing
from pathlib import Path

from planner.monitor.cards import Cards
from planner.monitor.csv_log import CsvLog
from planner.monitor.exporter import Exporter
from planner.monitor.planned import Planned
from planner.monitor.sample import Sample
from planner.monitor.scrape import Server
from planner.monitor.watch import Watch


class Session:
    """The server, the cards and the places that samples go to; what needs closing is left to `stack`.

    Without `local` the server runs elsewhere, and this machine's cards say nothing of it. `only`: which cards.
    """

    def __init__(
        self,
        stack: ExitStack,
        url: str,
        timeout_s: float,
        planned: Planned | None,
        csv: Path | None,
        port: int | None,
        *,
        local: bool = True,
        only: tuple[int, ...] | None = None,
    ) -> None:
        self.planned = planned
        self.server = stack.enter_context(closing(Server(url, timeout_s)))
        self._cards = stack.enter_context(closing(Cards(only))) if local else None
        self._watch = Watch(planned)
        self._log = None if csv is None else CsvLog(csv)
        self._exporter = None if port is None else stack.enter_context(closing(Exporter(port, planned)))

    def look(self) -> Sample:
        """One sample, written and exported. What could not be written is among its warnings."""
        cards = () if self._cards is None else self._cards.look()
        sample = self._watch.sample(time.time(), self.server.look(), cards)
        problem = None if self._log is None else self._log.append(sample)
        if problem is not None:
            sample = sample.model_copy(update={"warnings": (*sample.warnings, problem)})
        if self._exporter is not None:
            self._exporter.update(sample)
        return sample
