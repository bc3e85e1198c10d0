"""What a number of cards costs: the catalog's offers, the user's prices, or a purchase written off over months."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from planner.hardware.spec import GpuSpec, Price

HOURS_PER_MONTH = 730
_MACHINE = re.compile(r"\((\d+) GPUs\)")


@dataclass(frozen=True, slots=True)
class Cost:
    """Dollars for the cards of a choice; `billed` counts those of whole machines where the offer is a machine."""

    usd_per_gpu_hour: float
    billed: int
    offer: str
    source: str
    date: str

    @property
    def usd_per_hour(self) -> float:
        return self.usd_per_gpu_hour * self.billed


@dataclass(frozen=True, slots=True)
class PriceBook:
    """`given`: dollars for a card and hour by GPU name; `bought`: purchase prices of one card, written off over
    `months`. Both go before the catalog's offers."""

    given: Mapping[str, float]
    bought: Mapping[str, float]
    months: int = 36

    def cost(self, gpu: GpuSpec, count: int, nodes: int) -> Cost | None:
        """The least of the dated offers (undated ones only where there is no other) of machines with `count` cards,
        else of the largest machines; None where no price is known."""
        cards = count * nodes
        if gpu.name in self.bought:
            hourly = self.bought[gpu.name] / (self.months * HOURS_PER_MONTH)
            offer = f"bought at {self.bought[gpu.name]:g} USD a card, written off over {self.months} months"
            return Cost(hourly, cards, offer, "given by the user", "")
        if gpu.name in self.given:
            return Cost(self.given[gpu.name], cards, "price given by the user", "given by the user", "")
        offers = [price for price in gpu.prices if price.date != "undated"] or list(gpu.prices)
        largest = max((_size(price) for price in offers), default=0)
        enough = [price for price in offers if _size(price) >= count] or [
            price for price in offers if _size(price) == largest
        ]
        return min(
            (_offer(price, count, nodes) for price in enough),
            key=lambda cost: (cost.usd_per_hour, cost.offer),
            default=None,
        )


_NO_MACHINE = "(no machine with so many is listed)"


def _offer(price: Price, count: int, nodes: int) -> Cost:
    """A machine of N cards is rented whole. More cards than a machine has are priced a card each, and said to be so."""
    size = _size(price)
    if count <= size:
        return Cost(price.usd_per_gpu_hour, size * nodes, price.offer, price.source, price.date)
    return Cost(
        price.usd_per_gpu_hour,
        count * nodes,
        f"{price.offer}, as a price per card {_NO_MACHINE}",
        price.source,
        price.date,
    )


def _size(price: Price) -> int:
    match = _MACHINE.search(price.offer)
    return int(match.group(1)) if match else 1
