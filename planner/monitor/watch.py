"""From looks to samples: rates, restarts, and the signs that come before trouble."""

from __future__ import annotations

from collections import deque
from itertools import pairwise

from planner.monitor.planned import Planned
from planner.monitor.sample import CardUse, Sample, ServerLook
from planner.units import format_gib

_FULL_CACHE = 0.9
_RISING_LOOKS = 3
_LITTLE_ROOM_BYTES = 256 << 20


class Watch:
    """What was seen before, as far as the next look needs it."""

    def __init__(self, planned: Planned | None = None) -> None:
        self._planned = planned
        self._before: tuple[float, ServerLook] | None = None
        self._waiting: deque[float] = deque(maxlen=_RISING_LOOKS + 1)

    def sample(self, time: float, server: ServerLook, cards: tuple[CardUse, ...]) -> Sample:
        """The sample of one moment. Rates are over the time since the last answer, None after a restart."""
        before = self._before
        restarted = before is not None and server.problem is None and _restarted(before[1], server)
        sample = Sample(time=time, server=server, cards=cards, restarted=restarted)
        if restarted:
            self._waiting.clear()
        elif before is not None and server.problem is None and time > before[0]:
            seconds = time - before[0]
            sample = sample.model_copy(
                update={
                    "prompt_tokens_per_s": _rate(before[1].prompt_tokens, server.prompt_tokens, seconds),
                    "generation_tokens_per_s": _rate(before[1].generation_tokens, server.generation_tokens, seconds),
                    "new_preemptions": _rate(before[1].preemptions, server.preemptions, 1.0),
                }
            )
        if server.problem is None:
            self._before = (time, server)
            if server.waiting is not None:
                self._waiting.append(server.waiting)
        return sample.model_copy(update={"warnings": (*self._server_warnings(sample), *self._card_warnings(cards))})

    def _server_warnings(self, sample: Sample) -> list[str]:
        server = sample.server
        if server.problem is not None:
            return [server.problem]
        found = ["the server was restarted: rates begin anew"] if sample.restarted else []
        waiting = list(self._waiting)
        rising = len(waiting) > _RISING_LOOKS and all(one < two for one, two in pairwise(waiting))
        full = server.kv_cache_usage is not None and server.kv_cache_usage >= _FULL_CACHE
        if full and (server.waiting or 0) > 0:
            found.append(
                f"the KV cache is {server.kv_cache_usage:.0%} full and {server.waiting:.0f} requests wait: "
                "preemptions are next"
            )
        elif rising:
            found.append(f"the queue grows: {waiting[0]:.0f} to {waiting[-1]:.0f} waiting over {_RISING_LOOKS} looks")
        if sample.new_preemptions:
            found.append(f"{sample.new_preemptions:.0f} requests were preempted since the last look")
        return found

    def _card_warnings(self, cards: tuple[CardUse, ...]) -> list[str]:
        found = []
        for card in cards:
            if card.problem is not None:
                found.append(f"GPU {card.index}: {card.problem}")
            elif card.used_bytes is not None and card.total_bytes is not None:
                found += self._memory_warnings(card, card.used_bytes, card.total_bytes)
        return found

    def _memory_warnings(self, card: CardUse, used: int, total: int) -> list[str]:
        planned = self._planned
        held = None if planned is None else planned.held_bytes(card)
        if planned is not None and held is not None and held > planned.peak_bytes:
            return [
                f"GPU {card.index}: {format_gib(held)} in use, the plan has {format_gib(planned.peak_bytes)} at most"
            ]
        if total - used < _LITTLE_ROOM_BYTES:
            return [f"GPU {card.index}: only {format_gib(total - used)} free"]
        return []


def _restarted(before: ServerLook, now: ServerLook) -> bool:
    """A new process, or counters that went back."""
    if before.started_at is not None and now.started_at is not None and before.started_at != now.started_at:
        return True
    pairs = ((before.prompt_tokens, now.prompt_tokens), (before.generation_tokens, now.generation_tokens))
    return any(one is not None and two is not None and two < one for one, two in pairs)


def _rate(before: float | None, now: float | None, seconds: float) -> float | None:
    return None if before is None or now is None else max(0.0, now - before) / seconds
