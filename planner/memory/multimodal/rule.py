"""What every processor family answers: an item's tokens and patches, and the largest item of each modality."""

from __future__ import annotations

from msgspec import Struct

from planner.errors import UnsupportedError
from planner.memory.multimodal.item import LargestItem, MediaItem

CHANNELS = 3
LOADER_FRAMES = 32


class MediaRule(Struct, frozen=True):
    """One family's arithmetic under one set of processor kwargs. Families override what they do otherwise.

    A family without a rule of its own for the most tokens is budgeted by its dummy item, as vLLM does
    (vLLM 0.26.0 multimodal/encoder_budget.py:32).
    """

    family: str

    def image(self, width: int, height: int) -> MediaItem:
        raise UnsupportedError("media", f"images of {self.family} models are not supported by this planner")

    def video(self, width: int, height: int, frames: int) -> MediaItem:
        """A video of `frames` sampled frames."""
        raise UnsupportedError("media", f"videos of {self.family} models are not supported by this planner")

    def sampled_frames(self, seconds: float) -> int:
        """Frames that vLLM's loader picks of a video: 32, evenly spread (vLLM 0.26.0 multimodal/media/video.py:66)."""
        return LOADER_FRAMES

    def largest_size(self) -> tuple[int, int]:
        """Width and height of the dummy image."""
        raise UnsupportedError("media", f"images of {self.family} models are not supported by this planner")

    def largest_image(self, width: int | None, height: int | None) -> LargestItem:
        """`width`, `height`: caps on the dummy from --limit-mm-per-prompt."""
        wide, high = self.largest_size()
        dummy = self.image(min(wide, width or wide), min(high, height or high))
        return LargestItem(modality="image", max_tokens=dummy.tokens, item=dummy)

    def largest_video(
        self, max_model_len: int, beside_image: bool, frames: int | None, width: int | None, height: int | None
    ) -> LargestItem:
        """`beside_image`: images are allowed too, which some families subtract from the budget of the video."""
        raise UnsupportedError("media", f"videos of {self.family} models are not supported by this planner")

    def longest_video(self, max_tokens: int) -> MediaItem:
        """The video with most tokens up to `max_tokens` that a request can bring."""
        return self.largest_video(max_tokens, False, None, None, None).item

    def squares(self, sides: tuple[int, ...]) -> tuple[MediaItem, ...]:
        """Images of so many patches a side, for families whose images keep their size."""
        return ()
