"""What a load test sends: kinds of requests by weight, lengths by distribution, media by size. A seed, a sequence."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator
from typing import Literal, get_args

from msgspec import Struct

from planner.errors import InputError
from planner.units import parse_human_int

Kind = Literal["text", "image", "video"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_MAX_TOKENS = 1 << 20
_MAX_EDGE = 16384
_MAX_MEDIA_PIXELS = 1 << 28
_FORMS = "N, LOW-HIGH, normal:MEAN:SPREAD or lognormal:MEDIAN:SIGMA"


class Lengths(Struct, frozen=True):
    """A distribution of token counts. `first` and `second`: the range, mean and spread, or median and sigma."""

    form: Literal["uniform", "normal", "lognormal"]
    first: float
    second: float

    def draw(self, chance: random.Random) -> int:
        """One length, at least 1."""
        if self.form == "uniform":
            return chance.randint(int(self.first), int(self.second))
        if self.form == "normal":
            value = chance.gauss(self.first, self.second)
        else:
            value = math.exp(min(chance.gauss(math.log(self.first), self.second), 40.0))
        return min(max(round(value), 1), _MAX_TOKENS)


class Mix(Struct, frozen=True):
    """The requests of a test. `weights` in the order of KINDS; sizes are (width, height) in pixels and taken evenly.

    `longest`: of prompt and output together where the server told it, so that a text never asks for more.
    """

    weights: tuple[float, float, float] = (1.0, 0.0, 0.0)
    text_tokens: Lengths = Lengths("uniform", 512, 512)
    output_tokens: Lengths = Lengths("uniform", 128, 128)
    images: int = 1
    image_sizes: tuple[tuple[int, int], ...] = ((1024, 1024),)
    video_frames: int = 16
    video_sizes: tuple[tuple[int, int], ...] = ((448, 448),)
    longest: int | None = None

    def jobs(self, seed: int) -> Iterator[Job]:
        """The endless sequence of requests that belongs to a seed."""
        chance = random.Random(seed)
        for number in range(1 << 62):
            kind = chance.choices(KINDS, self.weights)[0]
            output, text = self.output_tokens.draw(chance), self.text_tokens.draw(chance)
            if self.longest is not None:
                output = min(output, max(self.longest - 2, 1))
                text = min(text, max(self.longest - output - 1, 1))
            size = chance.choice(self.video_sizes if kind == "video" else self.image_sizes)
            yield Job(number, kind, text, output, size, self._pieces(kind), chance.getrandbits(48))

    def _pieces(self, kind: Kind) -> int:
        return {"text": 0, "image": self.images, "video": self.video_frames}[kind]


class Job(Struct, frozen=True):
    """One request to make. `pieces`: images, or frames of its one video. `seed` decides its words and colours."""

    number: int
    kind: Kind
    text_tokens: int
    output_tokens: int
    size: tuple[int, int]
    pieces: int
    seed: int


def parse_weights(text: str) -> tuple[float, float, float]:
    """`text=6,image=3,video=1`, or one kind by its name."""
    found: dict[str, float] = {}
    for part in text.split(","):
        name, equals, value = part.strip().partition("=")
        if name not in KINDS or name in found:
            raise InputError(f"--mix: {part.strip()!r} is none of text=N, image=N, video=N, each at most once")
        try:
            found[name] = float(value) if equals else 1.0
        except ValueError:
            raise InputError(f"--mix: {value!r} is no number") from None
        if not (0 <= found[name] < math.inf):
            raise InputError(f"--mix: {name} needs a weight from 0 on, not {value}")
    if sum(found.values()) <= 0:
        raise InputError("--mix: some kind needs a weight above 0")
    return tuple(found.get(kind, 0.0) for kind in KINDS)  # type: ignore[return-value]


def parse_lengths(flag: str, text: str) -> Lengths:
    """A distribution of lengths in tokens. InputError naming `flag`."""
    try:
        lengths = _lengths(text.strip())
    except (InputError, ValueError):
        raise InputError(f"{flag}: write {_FORMS}, not {text!r}") from None
    if not (1 <= lengths.first <= _MAX_TOKENS) or not (0 <= lengths.second <= _MAX_TOKENS):
        raise InputError(f"{flag}: lengths run from 1 to {_MAX_TOKENS:,} tokens, not {text!r}")
    if lengths.form == "uniform" and lengths.second < lengths.first:
        raise InputError(f"{flag}: {text!r} ends before it begins")
    return lengths


def _lengths(text: str) -> Lengths:
    form, colon, rest = text.partition(":")
    if form in ("normal", "lognormal"):
        first, second = rest.split(":")
        return Lengths("normal" if form == "normal" else "lognormal", float(first), float(second))
    low, _, high = (rest if colon and form == "uniform" else text).replace(":", "-").partition("-")
    return Lengths("uniform", parse_human_int(low), parse_human_int(high or low))


def parse_sizes(flag: str, values: list[str], pieces: int) -> tuple[tuple[int, int], ...]:
    """Sizes as WIDTHxHEIGHT. InputError naming `flag`, also where `pieces` of a size are more than a request holds."""
    sizes = []
    for text in values:
        match = re.fullmatch(r"([0-9]{1,6})[x×]([0-9]{1,6})", text.strip())
        if match is None:
            raise InputError(f"{flag}: write WIDTHxHEIGHT, not {text!r}")
        width, height = int(match[1]), int(match[2])
        if not (1 <= width <= _MAX_EDGE and 1 <= height <= _MAX_EDGE):
            raise InputError(f"{flag}: an edge has 1 to {_MAX_EDGE} pixels, not {text!r}")
        if width * height * pieces > _MAX_MEDIA_PIXELS:
            raise InputError(f"{flag}: {pieces} of {text} are more than {_MAX_MEDIA_PIXELS:,} pixels in one request")
        sizes.append((width, height))
    return tuple(sizes)
