"""The monitor beside a load test: looks from a thread of its own, keeps the peaks, and writes every look to a CSV."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter

from msgspec import Struct

from planner.monitor.sample import Sample
from planner.monitor.session import Session

_FIGURE = re.compile(r"[0-9]+(?:\.[0-9]+)?(?= GiB|%| requests| to | waiting)")
_MOST_KINDS = 1000
_MOST_WARNINGS = 8


class CardPeak(Struct, frozen=True):
    """One card in bytes: in use before the load, and the most that any look saw."""

    index: int
    before_bytes: int
    peak_bytes: int
    total_bytes: int


class Peaks(Struct, frozen=True):
    """The most that any look saw, None for what no look told. `preemptions`: during the test."""

    looks: int
    cards: tuple[CardPeak, ...]
    kv_cache_usage: float | None
    running: float | None
    waiting: float | None
    preemptions: float | None
    warnings: tuple[str, ...]


class Recorder:
    """Use as a context manager: a look before the load, looks while the block runs, one more at its end."""

    def __init__(self, session: Session, interval_s: float) -> None:
        self._session, self._interval_s = session, interval_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="monitor", daemon=True)
        self._looks = 0
        self._cards: dict[int, CardPeak] = {}
        self._most: dict[str, float] = {}
        self._preemptions: float | None = None
        self._warnings: Counter[str] = Counter()
        self._last_words: dict[str, str] = {}

    def __enter__(self) -> Recorder:
        self._look()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._look()

    def peaks(self) -> Peaks:
        return Peaks(
            looks=self._looks,
            cards=tuple(self._cards[index] for index in sorted(self._cards)),
            kv_cache_usage=self._most.get("kv_cache_usage"),
            running=self._most.get("running"),
            waiting=self._most.get("waiting"),
            preemptions=self._preemptions,
            warnings=tuple(
                f"{self._last_words[kind]} ({count} looks)"
                for kind, count in self._warnings.most_common(_MOST_WARNINGS)
            ),
        )

    def _watch(self) -> None:
        due = time.monotonic()
        while True:
            due = max(due + self._interval_s, time.monotonic())
            if self._over.wait(due - time.monotonic()):
                return
            self._look()

    def _look(self) -> None:
        sample = self._session.look()
        self._looks += 1
        self._keep(sample)

    def _keep(self, sample: Sample) -> None:
        for name in ("kv_cache_usage", "running", "waiting"):
            value = getattr(sample.server, name)
            if value is not None:
                self._most[name] = max(value, self._most.get(name, value))
        if sample.new_preemptions is not None:
            self._preemptions = (self._preemptions or 0.0) + sample.new_preemptions
        for card in sample.cards:
            if card.used_bytes is None or card.total_bytes is None:
                continue
            seen = self._cards.get(card.index)
            before = card.used_bytes if seen is None else seen.before_bytes
            peak = card.used_bytes if seen is None else max(seen.peak_bytes, card.used_bytes)
            self._cards[card.index] = CardPeak(card.index, before, peak, card.total_bytes)
        for words in sample.warnings:
            kind = _FIGURE.sub("#", words)
            if kind in self._warnings or len(self._warnings) < _MOST_KINDS:
                self._warnings[kind] += 1
                self._last_words[kind] = words
