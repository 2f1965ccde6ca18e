"""Gemma 3's attention computes q, k and v together with their adapters, and its MLP gate and up.

That needs copies of the adapters (`adapter_copies.py`), and no cache. Else transformers' forward runs, which computes
one projection after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from torch import Tensor, nn

from .lora import Adapters, has_dropout, is_fused, project


class SharedInput:
    """A module with projections that read the same input."""

    names: tuple[str, ...] = ()
    copies: Adapters | None = None

    def projections(self) -> list[Any]:
        """The projections that this module computes together."""
        return [getattr(self, name) for name in self.names]


def share_inputs(model: nn.Module) -> int:
    """Changes each attention and MLP whose projections all have plain adapters without dropout.

    Returns the number of modules that it changed.
    """
    from transformers.models.gemma3.modeling_gemma3 import Gemma3Attention, Gemma3MLP

    takers: dict[Any, Any] = {Gemma3Attention: _Attention, Gemma3MLP: _Mlp}
    found = 0
    for module in model.modules():
        kind: Any = type(module)
        taker = takers.get(kind)
        if taker is not None and all(_may_share(getattr(module, name)) for name in taker.names):
            module.__class__ = _kind(taker, kind)
            found += 1
    return found


def _may_share(layer: nn.Module) -> bool:
    return is_fused(layer) and not has_dropout(layer)


@cache
def _kind(taker: Any, kind: Any) -> Any:
    """A subclass of `kind` with the forward of `taker`. Modules share compiled code only if they share their class."""
    return type(f"Shared{kind.__name__}", (taker, kind), {})


class _Attention(SharedInput):
    names = ("q_proj", "k_proj", "v_proj")

    def forward(
        self: Any,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """As transformers' `Gemma3Attention.forward`: hidden_states [1, T, hidden] in and out."""
        if self.copies is None or past_key_values is not None:
            return super().forward(  # type: ignore[misc, no-any-return]
                hidden_states, position_embeddings, attention_mask, past_key_values, **kwargs
            )
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        rows = hidden_states.shape[:-1]
        query, key, value = (
            output.view(*rows, -1, self.head_dim).transpose(1, 2)
            for output in project(hidden_states, self.projections(), self.copies)
        )
        query, key = self.rotated(self.q_norm(query), self.k_norm(key), *position_embeddings)
        attend: Callable[..., tuple[Tensor, None]] = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
        options = {"scaling": self.scaling, "sliding_window": self.sliding_window}
        mixed, _ = attend(self, query, key, value, attention_mask, **options, **kwargs)
        return self.o_proj(mixed.reshape(*rows, -1)), None

    def rotated(self, query: Tensor, key: Tensor, cosine: Tensor, sine: Tensor) -> tuple[Tensor, Tensor]:
        """Both with their rotary embedding. query, key: [1, heads, T, d]; cosine, sine: [1, T, d]"""
        from transformers.models.gemma3.modeling_gemma3 import apply_rotary_pos_emb

        turned: tuple[Tensor, Tensor] = apply_rotary_pos_emb(query, key, cosine, sine)
        return turned


class _Mlp(SharedInput):
    names = ("gate_proj", "up_proj")

    def forward(self: Any, x: Tensor) -> Tensor:
        """As transformers' `Gemma3MLP.forward`: x [..., hidden] in and out."""
        if self.copies is None:
            return super().forward(x)  # type: ignore[misc, no-any-return]
        gate, up = project(x, self.projections(), self.copies)
        output: Tensor = self.down_proj(self.gated(gate, up))
        return output

    def gated(self: Any, gate: Tensor, up: Tensor) -> Tensor:
        """The activated gate times up. [..., inner]"""
        product: Tensor = self.act_fn(gate) * up
        return product
