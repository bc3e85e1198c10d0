"""The strided 2-D convolutions before Qwen3-Omni's audio encoder: its highest moment for most sounds.

Derived from the code, not measured; cuDNN's workspace is left out. Source: vLLM 0.26.0
model_executor/models/qwen3_omni_moe_thinker.py:430-520 Qwen3OmniMoeAudioEncoder.forward.
"""

from __future__ import annotations

from collections.abc import Sequence

from planner.memory.multimodal.item import MediaItem
from planner.memory.program import Program
from planner.model.vision_spec import AudioFrames

_STEPS = 3


def write_stem(p: Program, audio: AudioFrames, items: Sequence[MediaItem], item_bytes: int) -> None:
    """Sounds are cut into windows of `stem_window` frames, of which `stem_batch` are convolved at once. Each of three
    convolutions halves mel bins and frames; its activation is a new tensor."""
    windows = sum(-(-entry.frames // audio.stem_window) for entry in items)
    p.stage("convolutions")
    padded = p.alloc("sound in windows", constant=windows * audio.stem_window * audio.mel_bins * item_bytes)
    made: list[int] = []
    left = windows
    while left:
        count = min(audio.stem_batch, left)
        left -= count
        made.append(_convolve(p, audio, count, item_bytes))
    last = audio.stem_channels * _halved(audio.mel_bins, _STEPS) * _halved(audio.stem_window, _STEPS)
    if len(made) > 1:
        made.append(p.alloc("convolved windows", constant=windows * last * item_bytes))
    rows = p.alloc("convolved windows in rows", constant=windows * last * item_bytes)
    p.free(rows, padded, *made)


def _convolve(p: Program, audio: AudioFrames, count: int, item_bytes: int) -> int:
    before: int | None = None
    for step in range(1, _STEPS + 1):
        values = count * audio.stem_channels * _halved(audio.mel_bins, step) * _halved(audio.stem_window, step)
        convolved = p.alloc(f"convolution {step}", constant=values * item_bytes)
        active = p.alloc(f"activation {step}", constant=values * item_bytes)
        p.free(convolved, before)
        before = active
    assert before is not None
    return before


def _halved(size: int, times: int) -> int:
    for _ in range(times):
        size = (size + 1) // 2
    return size
