"""The one exchange of a layer: brings the keys and values that this rank's queries see and another rank owns.

Keys and values travel in one tensor by one `all_to_all_single`, whose sizes the host knows. Backward is the reverse
exchange: a rank gets the gradients of the keys that it sent, and adds them to those of its own use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Exchange:
    """What one rank sends and gets in a layer. group: of the context's ranks

    sends: the own tokens that each rank of the group needs, as slices; gets: the tokens that come from each of them
    idle:  whether no rank of the group sends anything, which all of them know
    """

    sends: tuple[slice, ...]
    gets: tuple[int, ...]
    idle: bool
    group: Any

    def __call__(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Key and value [1, kv heads, T, d] with those of earlier tokens before them. Collective."""
        if self.idle:
            return key, value
        both: Tensor = _WithEarlier.apply(key, value, self)
        keys, values = both.unbind(1)
        return keys.transpose(0, 1).unsqueeze(0), values.transpose(0, 1).unsqueeze(0)

    @property
    def sent(self) -> list[int]:
        """The tokens that go to each rank."""
        return [piece.stop - piece.start for piece in self.sends]


class _WithEarlier(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, key: Tensor, value: Tensor, exchange: Exchange) -> Tensor:
        """Returns [earlier + T, 2, kv heads, d]: the keys, and the values."""
        _, heads, tokens, width = key.shape
        earlier = sum(exchange.gets)
        both = key.new_empty(earlier + tokens, 2, heads, width)
        own = both[earlier:]
        own[:, 0], own[:, 1] = key[0].transpose(0, 1), value[0].transpose(0, 1)
        sent = torch.cat([own[piece] for piece in exchange.sends])
        _all_to_all(both[:earlier], sent, exchange.gets, exchange.sent, exchange.group)
        ctx.exchange = exchange
        return both

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, None]:
        exchange: Exchange = ctx.exchange
        gradient, earlier = upstream[0].contiguous(), sum(exchange.gets)
        back = gradient.new_empty(sum(exchange.sent), *gradient.shape[1:])
        _all_to_all(back, gradient[:earlier], exchange.sent, exchange.gets, exchange.group)
        own = gradient[earlier:].float()
        for piece, more in zip(exchange.sends, back.split(exchange.sent), strict=True):
            own[piece] += more
        keys, values = own.to(gradient.dtype).transpose(0, 2).unbind(1)
        return keys.unsqueeze(0), values.unsqueeze(0), None


def _all_to_all(output: Tensor, given: Tensor, gets: Sequence[int], sent: Sequence[int], group: Any) -> None:
    """Rows of both go as bytes, which every backend carries, whatever the values' type."""
    raw = [tensor.flatten(1).view(torch.uint8) for tensor in (output, given)]
    dist.all_to_all_single(raw[0], raw[1], list(gets), list(sent), group=group)
