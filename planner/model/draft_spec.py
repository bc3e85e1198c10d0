"""What the memory of a draft model depends on, beside its modules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import Struct

if TYPE_CHECKING:
    from planner.model.spec import ModelSpec


class Draft(Struct, frozen=True, kw_only=True):
    """What drafts for a target, whole model. Its modules lie among the target's, as component "draft_model".

    `words`: rows of its output head, the target's where it borrows that; `all_words`: those of its logits in the end.
    `target_layers`: before which layers of the target its hidden states are kept for the head (EAGLE-3). `joined`: how
    many hidden states go into the projection. `whole`: the ModelSpec of a model of its own, or of one layer for
    multi-token prediction; None for a head. `eager`: V1 captures no graphs of it (config/speculative.py:690).
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
    whole: Any = None
    eager: bool = False

    @property
    def model(self) -> ModelSpec | None:
        """The model of its own, or the one layer, that drafts."""
        whole: ModelSpec | None = self.whole
        return whole
