"""How one batch goes through the model, as far as it decides what is allocated."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Step:
    """How a batch runs. `attends`: attention has metadata and computes, which it does not in a profile run. `decodes`:
    latent attention takes all its requests for decodes. `splits`: FlashAttention writes partial outputs. `overlaps`:
    shared experts run on a stream of their own; `leaves`: the first to do so makes vLLM leave the default stream."""

    attends: bool = False
    decodes: bool = False
    splits: bool = False
    overlaps: bool = False
    leaves: bool = False
