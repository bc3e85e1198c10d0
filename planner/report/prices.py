"""What a number of cards costs: the catalog's offers, the user's prices, or a purchase written off over months."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from planner.hardware.spec import GpuSpec, Price

HOURS_PER_MONTH = 730
_MACHINE = re.compile(r"\((\d+) GPUs\)")


UNDATED = "undated"


@dataclass(frozen=True, slots=True)
class Cost:
    """Dollars for the cards of a choice; `billed` counts those of whole machines where the offer is a machine.

    `basis`: "rent" (an offer), "given" (an hourly price of the user) or "buy" (`usd_to_buy` written off). `date`: when
    the price was read; UNDATED, or empty where it is the user's own.
    """

    basis: str
    usd_per_gpu_hour: float
    billed: int
    offer: str
    source: str
    date: str
    region: str = ""
    usd_to_buy: float | None = None

    @property
    def usd_per_hour(self) -> float:
        return self.usd_per_gpu_hour * self.billed


@dataclass(frozen=True, slots=True)
class PriceBook:
    """`given`: dollars for a card and hour by GPU name; `bought`: purchase prices of one card, written off over
    `months`. Both go before the catalog's offers, of which only those of `providers` and `regions` count (empty: all;
    a region of "us" takes every one whose name begins so)."""

    given: Mapping[str, float]
    bought: Mapping[str, float]
    months: int = 36
    providers: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()

    def cost(self, gpu: GpuSpec, count: int, nodes: int) -> Cost | None:
        """The least of the dated offers (undated ones only where there is no other) of machines with `count` cards,
        else of the largest machines; None where no price is known."""
        cards = count * nodes
        mine = "given by the user"
        if gpu.name in self.bought:
            price = self.bought[gpu.name]
            offer = f"bought at {price:,g} USD a card, written off over {self.months} months"
            hourly = price / (self.months * HOURS_PER_MONTH)
            return Cost("buy", hourly, cards, offer, mine, "", usd_to_buy=price * cards)
        if gpu.name in self.given:
            return Cost("given", self.given[gpu.name], cards, "price given by the user", mine, "")
        sold = [price for price in gpu.prices if self._counts(price)]
        offers = [price for price in sold if price.date != UNDATED] or sold
        largest = max((_size(price) for price in offers), default=0)
        enough = [price for price in offers if _size(price) >= count] or [
            price for price in offers if _size(price) == largest
        ]
        return min(
            (_offer(price, count, nodes) for price in enough),
            key=lambda cost: (cost.usd_per_hour, cost.offer),
            default=None,
        )

    def _counts(self, price: Price) -> bool:
        return (not self.providers or price.provider in self.providers) and (
            not self.regions or any(price.region.startswith(region) for region in self.regions)
        )


_PER_CARD = "as a price per card: no machine with so many is listed"


def _offer(price: Price, count: int, nodes: int) -> Cost:
    """A machine of N cards is rented whole. More cards than a machine has are priced a card each, and said to be so."""
    size = _size(price)
    offer, billed = price.offer, max(size, count) * nodes
    if count > size:
        offer = f"{offer}, {_PER_CARD}"
    return Cost("rent", price.usd_per_gpu_hour, billed, offer, price.source, price.date, price.region)


def _size(price: Price) -> int:
    match = _MACHINE.search(price.offer)
    return int(match.group(1)) if match else 1
