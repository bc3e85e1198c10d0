"""One embed_multimodal call of the plain vision transformers: CLIP, SigLIP, InternViT, Pixtral, MoonViT, Llama 4's, and
Whisper's audio encoder; and of the projectors behind them.

Derived from the code, not measured. Left out: workspaces that cuDNN may take for the patch convolution.
Source: vLLM 0.26.0 model_executor/models/{clip,siglip,intern_vit,pixtral,moonvit,mllama4,idefics2_vision_model}.py and
the classes that call them; transformers 5.14.1 models/qwen2_audio/modeling_qwen2_audio.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

from planner.memory.multimodal.item import MediaItem
from planner.memory.multimodal.tower import TowerRun

_BLOCKS = 2
_MASK_UNIT = 16


class Projector(Struct, frozen=True, kw_only=True):
    """What turns features into embeddings. `features`: width of what it reads for each token; `inner`: its hidden
    layer, 0 for a single linear; `tp`: ranks that divide the hidden layer. `shuffles`: features are first copied into
    another order. `resamples`: MiniCPM-V's, whose keys and values for each patch are as wide as its output.
    `each_patch`: MiniMax-M3's, which projects every patch before it merges them. `cross_heads`: Aria's heads, whose
    queries attend to the `sequence` patches of an image; else 0."""

    features: int
    inner: int
    output: int
    tp: int
    shuffles: bool
    resamples: bool
    each_patch: bool
    cross_heads: int
    sequence: int


class PlainRun(Struct, frozen=True, kw_only=True):
    """`all_states`: every layer's hidden states are kept for several feature layers. `mask`: none; one over all
    patches of the batch ("batch", Pixtral); or one for each sequence ("sequence", Whisper in transformers).
    `rotary_bytes`: the rotary table of one row."""

    all_states: bool = False
    mask: Literal["none", "batch", "sequence"] = "none"
    rotary_bytes: int = 0


def write_plain(run: TowerRun, plain: PlainRun, projector: Projector, items: Sequence[MediaItem]) -> int:
    """Write the run over `items`; the handle of their embeddings, in one tensor."""
    features = _encode(run, plain, items)
    tokens = sum(item.tokens for item in items)
    if projector.each_patch:
        return _project_patches(run, projector, tokens, features)
    out = _resample(run, projector, tokens) if projector.resamples else _project(run, projector, tokens)
    run.p.free(features)
    return out


def write_one_by_one(
    runs: Sequence[TowerRun], plain: PlainRun, projector: Projector, items: Sequence[MediaItem]
) -> int:
    """The same for a class that encodes image after image, then projects each (vLLM 0.26.0 paddleocr_vl.py:1150)."""
    p = runs[0].p
    features = [_encode(run, plain, [item]) for run, item in zip(runs, items, strict=True)]
    p.free(*[_project(run, projector, item.tokens) for run, item in zip(runs, items, strict=True)])
    out = runs[0].tensor("embeddings", projector.output, sum(item.tokens for item in items))
    p.free(*features)
    return out


def _encode(run: TowerRun, plain: PlainRun, items: Sequence[MediaItem]) -> int:
    """The tower's features of all patches."""
    p, tower = run.p, run.tower
    p.stage("patch embedding")
    held = [run.tensor("embedded patches", tower.hidden)]
    if plain.rotary_bytes:
        held.append(p.alloc("rotary table of the patches", constant=run.rows * plain.rotary_bytes))
    held += _mask(run, plain, items)
    if plain.all_states:
        held.append(run.tensor("hidden states of all layers", tower.hidden * tower.layers))
    x: int | None = None
    for layer in range(min(tower.layers, _BLOCKS)):
        p.stage(f"encoder block {layer}")
        x = run.block(x)
    p.stage("projector")
    features = run.tensor("features", tower.hidden)
    p.free(x, *held)
    return features


def _mask(run: TowerRun, plain: PlainRun, items: Sequence[MediaItem]) -> list[int]:
    """A dense mask in the model's dtype; PyTorch's kernel gets a copy padded to a multiple of 16 columns."""
    if plain.mask == "none":
        return []
    lengths = [run.rows] if plain.mask == "batch" else [item.patches for item in items]
    if any(length % _MASK_UNIT for length in lengths):
        padded = sum(length * -(-length // _MASK_UNIT) * _MASK_UNIT for length in lengths)
        run.padded_mask_bytes = padded * run.tower.item
    return [run.p.alloc("attention mask", constant=sum(length**2 for length in lengths) * run.tower.item)]


def _project(run: TowerRun, projector: Projector, tokens: int) -> int:
    p = run.p
    copied = run.tensor("features in token order", projector.features, tokens) if projector.shuffles else None
    active: int | None = None
    if projector.inner:
        hidden = run.tensor("projector hidden layer", projector.inner / projector.tp, tokens)
        active = run.tensor("projector activation", projector.inner / projector.tp, tokens)
        p.free(hidden)
    out = run.tensor("embeddings", projector.output, tokens)
    p.free(copied, active)
    return out


def _project_patches(run: TowerRun, projector: Projector, tokens: int, features: int) -> int:
    """Two MLPs: one over the patches, which holds their features to its end, then one over the merged tokens."""
    for rows in (run.rows, tokens):
        hidden = run.tensor("projector hidden layer", projector.inner / projector.tp, rows)
        active = run.tensor("projector activation", projector.inner / projector.tp, rows)
        run.p.free(hidden)
        out = run.row_linear("projector output", projector.inner // projector.tp, projector.output, rows)
        run.p.free(active, features)
        features = out
    return features


def _cross_attend(run: TowerRun, projector: Projector, tokens: int) -> int:
    """Aria's: PyTorch's attention of queries over the patches, with a mask, scores and their softmax written out
    (transformers 5.14.1 models/aria/modeling_aria.py:146, torch.nn.functional.multi_head_attention_forward)."""
    p, hidden = run.p, run.tower.hidden
    held = [
        run.tensor(name, hidden) for name in ("normalized patches", "keys", "values", "heads' keys", "heads' values")
    ]
    held += [run.tensor(name, hidden, tokens) for name in ("queries", "projected queries", "heads' queries")]
    cells = projector.cross_heads * tokens * projector.sequence * run.tower.item
    held += [p.alloc(f"attention {name}", constant=cells) for name in ("mask", "scores", "softmax")]
    p.free(*held)
    return run.tensor("embeddings", projector.output, tokens)


def _resample(run: TowerRun, projector: Projector, tokens: int) -> int:
    """Queries attend to the patches: projected, normalized, with positions, then as keys and as values."""
    if projector.cross_heads:
        return _cross_attend(run, projector, tokens)
    names = ("projected patches", "normalized patches", "patches with positions", "keys", "values")
    held = [run.tensor(name, projector.output) for name in names]
    out = run.tensor("embeddings", projector.output, tokens)
    run.p.free(*held)
    return out
