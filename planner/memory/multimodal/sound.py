"""Sound: seconds to mel frames to encoder positions to tokens.

Source: vLLM 0.26.0 model_executor/models/qwen2_audio.py:122, qwen3_asr.py:212, qwen3_omni_moe_thinker.py:1149,
gemma4_mm.py:330; Whisper's feature extractor makes 100 frames a second and pads each sound to a chunk of 30 seconds.
"""

from __future__ import annotations

from math import ceil

from msgspec import Struct

from planner.errors import InputError
from planner.memory.multimodal.item import LargestItem, MediaItem
from planner.model.vision_spec import AudioFrames

_FRAMES_PER_SECOND = 100
_MARKERS = 2
_GROUP_FRAMES, _GROUP_TOKENS = 100, 13
_WINDOWED = ("Qwen3ASR", "Qwen3OmniMoe")
_DUMMY_FRAMES = 3


class SoundRule(Struct, frozen=True):
    """Qwen3-ASR and Qwen3-Omni have 13 tokens for each 100 frames and encode what is there; Gemma 4 encodes what is
    there too and halves the frames twice; the others halve them twice and pad."""

    family: str
    rule: AudioFrames

    def sound(self, seconds: float) -> MediaItem:
        """InputError for more than one chunk, which the feature extractor cuts off."""
        frames = max(1, ceil(seconds * _FRAMES_PER_SECOND))
        if self.family == "Gemma3n":
            return self._fixed(min(frames, self.rule.max_frames))
        if self.family == "Gemma4":
            return self._unpadded(min(frames, self.rule.max_frames))
        if frames > self.rule.max_frames:
            raise InputError(f"sound of {seconds:g} s: the processor takes {self.rule.max_frames // 100} s at most")
        positions = (frames - 1) // 2 + 1
        tokens = (positions - 2) // 2 + 1
        padded, values = self.rule.encoder_positions, self.rule.max_frames * self.rule.mel_bins
        if self.family in _WINDOWED:
            rest = frames % _GROUP_FRAMES
            tokens = frames // _GROUP_FRAMES * _GROUP_TOKENS + (((((rest - 1) // 2 + 1) - 1) // 2 + 1 - 1) // 2 + 1)
            padded, values = tokens, frames * self.rule.mel_bins
        return MediaItem(
            modality="audio", tokens=max(tokens, 1), prompt_tokens=max(tokens, 1) + _MARKERS, patches=padded,
            sequences=1, input_values=values, frames=frames,
        )  # fmt: skip

    def longest(self) -> MediaItem:
        return self.sound(self.rule.max_frames / _FRAMES_PER_SECOND)

    def largest(self) -> LargestItem:
        """Qwen3-Omni's budget counts as Qwen2-Audio does; Gemma 4's dummy is one frame of the Fourier transform."""
        item = self.longest()
        if self.family == "Gemma4":
            return LargestItem(modality="audio", max_tokens=self.rule.tokens, item=self._unpadded(_DUMMY_FRAMES))
        most = self.rule.tokens if self.family == "Qwen3OmniMoe" else item.tokens
        return LargestItem(modality="audio", max_tokens=most, item=item)

    def _fixed(self, frames: int) -> MediaItem:
        """Gemma 3n pads or cuts each sound's embeddings to one number (gemma3n_mm.py:636)."""
        tokens = self.rule.tokens
        return MediaItem(
            modality="audio", tokens=tokens, prompt_tokens=tokens + 2 * _MARKERS, patches=tokens, sequences=1,
            input_values=frames * self.rule.mel_bins, frames=frames,
        )  # fmt: skip

    def _unpadded(self, frames: int) -> MediaItem:
        tokens = min((((frames - 1) // 2 + 1) - 1) // 2 + 1, self.rule.tokens)
        return MediaItem(
            modality="audio", tokens=tokens, prompt_tokens=tokens + _MARKERS, patches=tokens, sequences=1,
            input_values=frames * self.rule.mel_bins, frames=frames,
        )  # fmt: skip
