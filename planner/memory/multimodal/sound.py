"""Sound: seconds to mel frames to encoder positions to tokens.

Source: vLLM 0.26.0 model_executor/models/qwen2_audio.py:122, qwen3_asr.py:212; Whisper's feature extractor makes 100
frames a second and pads each sound to a chunk of 30 seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from planner.errors import InputError
from planner.memory.multimodal.item import LargestItem, MediaItem
from planner.model.vision_spec import AudioFrames

_FRAMES_PER_SECOND = 100
_MARKERS = 2
_GROUP_FRAMES, _GROUP_TOKENS = 100, 13


@dataclass(frozen=True)
class SoundRule:
    """`family` Qwen3ASR has 13 tokens for each 100 frames and encodes what is there; the others halve the frames
    twice and pad."""

    family: str
    rule: AudioFrames

    def sound(self, seconds: float) -> MediaItem:
        """InputError for more than one chunk, which the feature extractor cuts off."""
        frames = max(1, ceil(seconds * _FRAMES_PER_SECOND))
        if frames > self.rule.max_frames:
            raise InputError(f"sound of {seconds:g} s: the processor takes {self.rule.max_frames // 100} s at most")
        positions = (frames - 1) // 2 + 1
        tokens = (positions - 2) // 2 + 1
        padded, values = self.rule.encoder_positions, self.rule.max_frames * self.rule.mel_bins
        if self.family == "Qwen3ASR":
            rest = frames % _GROUP_FRAMES
            tokens = frames // _GROUP_FRAMES * _GROUP_TOKENS + (((((rest - 1) // 2 + 1) - 1) // 2 + 1 - 1) // 2 + 1)
            padded, values = tokens, frames * self.rule.mel_bins
        return MediaItem(
            modality="audio", tokens=max(tokens, 1), prompt_tokens=max(tokens, 1) + _MARKERS, patches=padded,
            sequences=1, input_values=values, frames=frames,
        )  # fmt: skip

    def largest(self) -> LargestItem:
        item = self.sound(self.rule.max_frames / _FRAMES_PER_SECOND)
        return LargestItem(modality="audio", max_tokens=item.tokens, item=item)
