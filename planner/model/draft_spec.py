"""Draft: what the memory of a head that drafts for a target depends on, beside its modules."""

from __future__ import annotations

from msgspec import Struct


class Draft(Struct, frozen=True, kw_only=True):
    """A head that drafts for a target, whole model. Its modules lie among the target's, as component "draft_model".

    `words`: rows of its output head, the target's where it borrows that; `all_words`: those of its logits in the end.
    `target_layers`: before which layers of the target its hidden states are kept for the head (EAGLE-3). `joined`: how
    many hidden states go into the projection.
    """

    method: str
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    layers: int
    words: int
    all_words: int
    own_head: bool
    joined: int
    max_model_len: int
    target_layers: tuple[int, ...] = ()
