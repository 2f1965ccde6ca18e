"""Fully sharded: the ranks divide every parameter among them, frozen ones too, and gather each for use.

torch's `fully_shard` makes each decoder layer a group, and embedding and final norm the root group. The frozen base has
no gradients, so only the adapters' are reduce-scattered, once a step, in its last backward. The head is tied to the
embedding: the root group stays gathered from the decoder's forward to its backward, and the loss runs in between.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from ..config.schema import Quantization
from ..config.sections.recipe import OptimConfig
from ..config.sections.sharing import Fsdp2Config
from ..errors import UserError
from ..kernels.loss import SupervisedCrossEntropy
from ..kernels.packed_layers import PARAMETER, PackedLayer, pack_layer
from ..model.gemma import TrainableModel, projections_in_8_bits
from ..model.lean import WeightFiles, placeholder_model, placeholders_to_meta
from .base import StateDict, by_parameter
from .collectives import most_over_ranks, sum_over_ranks, sum_scalar
from .ddp import build_optimizer, optimizer_step
from .quantised_shares import ShareFiller
from .whole import WholeParameters

DIVIDES_BYTES = (2, 13)  # the first torch whose `fully_shard` takes parameters that are no floating-point numbers


class Fsdp2Strategy:
    """`strategy: fsdp2`. It needs a process group, also for one rank."""

    name = "fsdp2"

    def __init__(self, optim: OptimConfig, config: Fsdp2Config, quantization: Quantization = "none") -> None:
        self._optim_config = optim
        self._config = config
        self._quantization = quantization
        self.world_size = dist.get_world_size()
        self._files: WeightFiles | None = None
        self._backwards_left = 0

    def load_base(self, folder: Path, dtype: torch.dtype, device: torch.device) -> Any:
        """Placeholders, whose shards `setup` reads from the files."""
        refuse_old_torch(self._quantization)
        self._files = WeightFiles(folder)
        self._device = device
        self._eight_bits = projections_in_8_bits(folder, self._quantization)
        return placeholder_model(folder, dtype)

    def setup(self, model: TrainableModel) -> TrainableModel:
        if self._files is None:
            self._device = model.device
        base = model.peft_model.get_base_model()
        root: Any = model.text_model
        if base.lm_head.weight is not root.embed_tokens.weight:
            raise UserError(
                "train.strategy is fsdp2, which gathers the head with the embedding, but this model's head has its own "
                "weight (tie_word_embeddings is false); use train.strategy ddp"
            )
        self._packed = self._pack(root) if self._quantization != "none" else []
        placeholders_to_meta(base)
        self._mesh = init_device_mesh(self._device.type, (self.world_size,))
        self._root = self._shard(root)
        if self._files is not None:
            self._fill(base, self._files)
        base.lm_head.weight = root.embed_tokens.weight
        self._parameters = {name: p for name, p in model.adapter_parameters().items() if isinstance(p, DTensor)}
        self._optimizer = build_optimizer(list(self._parameters.values()), self._optim_config)
        self._whole = WholeParameters(model, self._optim_config)
        return dataclasses.replace(
            model, criterion=_GatheredHead(root.embed_tokens, model.criterion), device=self._device, copies=None
        )

    def _shard(self, root: Any) -> FSDPModule:
        """Shards each decoder layer, then the rest: embedding and final norm."""
        weight = root.embed_tokens.weight
        options: dict[str, Any] = {
            "mesh": self._mesh,
            # Adapters are stored in fp32. They are gathered in the base's dtype, which their products use.
            "mp_policy": MixedPrecisionPolicy(weight.dtype, torch.float32, cast_forward_inputs=False),
            "offload_policy": CPUOffloadPolicy(pin_memory=self._device.type == "cuda")
            if self._config.cpu_offload
            else OffloadPolicy(),
        }
        for layer in root.layers:
            fully_shard(layer, reshard_after_forward=self._config.reshards, **options)
        sharded: FSDPModule = fully_shard(root, reshard_after_forward=False, **options)
        for module in _groups(sharded):
            module.set_gradient_divide_factor(1.0)  # sums, never averages
            module.set_force_sum_reduction_for_comms(True)
        return sharded

    def _pack(self, root: Any) -> list[PackedLayer]:
        """Puts each layer's quantised weights into one parameter. `fully_shard` cannot divide bitsandbytes' own."""
        return [pack_layer(layer, self._eight_bits, self.world_size) for layer in root.layers]

    def _fill(self, base: nn.Module, files: WeightFiles) -> None:
        """Gives each meta parameter of the decoder memory for this rank's rows, and reads or quantises them."""
        home = torch.device("cpu") if self._config.cpu_offload else self._device
        root: Any = self._root
        missing = {name for name, p in base.named_parameters() if p.is_meta and isinstance(p, DTensor)}
        root._apply(lambda t: torch.empty_like(t, device=home) if t.is_meta else t)
        filler = ShareFiller(files, root.embed_tokens.weight.dtype, self._device, self._quantization == "int8")
        packed = iter(self._packed)
        for name, parameter in base.named_parameters():
            if name.endswith(f".{PARAMETER}"):
                filler.fill(_local(parameter), next(packed), name.removesuffix(PARAMETER))
            elif name in missing and isinstance(parameter, DTensor):
                mine = self._rows(parameter.shape[0])
                local = parameter.to_local()
                local.detach().copy_(files.rows(name.replace(".base_layer.", "."), mine.start, mine.stop))

    def passes(self, own: int) -> int:
        self._backwards_left = most_over_ranks(own, self._device)
        return self._backwards_left

    def backward(self, loss: Tensor) -> None:
        self._backwards_left -= 1
        self._root.set_requires_gradient_sync(self._backwards_left == 0)
        loss.backward()

    def reduce_gradients(self) -> None:
        """Reduces those of whole parameters only: the last backward has reduced the others."""
        self._whole.reduce_gradients()

    def clip(self, max_norm: float) -> float:
        gradients = [_local(p.grad) for p in self._parameters.values() if p.grad is not None]
        squares = torch.stack([g.float().square().sum() for g in gradients]).double().sum()
        norm = float((sum_scalar(squares, self._device) + self._whole.squares()) ** 0.5)
        if 0 < max_norm < norm:
            torch._foreach_mul_(gradients, max_norm / (norm + 1e-6))
            self._whole.scale(max_norm / (norm + 1e-6))
        return norm

    def step(self, learning_rate: float) -> None:
        optimizer_step(self._optimizer, learning_rate)
        self._whole.step(learning_rate)

    def sum_over_ranks(self, values: list[float]) -> list[float]:
        return sum_over_ranks(values, self._device)

    def gather_adapter(self) -> StateDict:
        return {name: self._full(p) for name, p in self._parameters.items()} | self._whole.gather_adapter()

    def gather_optimizer(self) -> StateDict:
        return {
            f"{name}.{field}": self._full(value) if isinstance(value, DTensor) else torch.as_tensor(value).cpu().clone()
            for name, parameter in self._parameters.items()
            for field, value in self._optimizer.state.get(parameter, {}).items()
        } | self._whole.gather_optimizer()

    def restore(self, adapter: StateDict, optimizer: StateDict) -> None:
        self._whole.restore(adapter, optimizer)
        for module in _groups(self._root):
            module.reshard()  # an evaluation may leave gathered copies
        states = by_parameter(optimizer)
        for name, parameter in self._parameters.items():
            _local(parameter).copy_(adapter[name][self._rows(parameter.shape[0])])
            if name in states:
                # `step` is one number. The fused AdamW keeps it on the shard's device.
                self._optimizer.state[parameter] = {
                    field: value.to(_local(parameter).device, copy=True)
                    if field == "step"
                    else self._divided(value, parameter)
                    for field, value in states[name].items()
                }

    def _rows(self, count: int) -> slice:
        """This rank's share of a tensor's rows. Chunks are equal, but the last ones may be shorter or empty."""
        chunk = -(-count // self.world_size)
        start = min(dist.get_rank() * chunk, count)
        return slice(start, min(start + chunk, count))

    def _divided(self, full: Tensor, like: DTensor) -> DTensor:
        """This rank's rows of `full`, on the device of `like`'s rows: the host, if they are offloaded.

        `DTensor.from_local` would move them to the mesh's device.
        """
        divided = torch.empty_like(like.detach(), dtype=full.dtype)
        assert isinstance(divided, DTensor)
        _local(divided).copy_(full[self._rows(full.shape[0])])
        return divided

    def _full(self, sharded: DTensor) -> Tensor:
        """The whole tensor, on the CPU. Collective, on the process group's device."""
        here: Any = sharded.detach().to(self._device)
        full: Tensor = here.full_tensor()
        return full.to("cpu", copy=True).contiguous()


class _GatheredHead(SupervisedCrossEntropy):
    """The loss. Its head's weight is whole only between the decoder's forward and its backward."""

    def __init__(self, head: Any, criterion: SupervisedCrossEntropy) -> None:
        super().__init__(criterion.head_weight, criterion.softcap, criterion.chunk_rows)
        self._head = head

    def __call__(self, hidden: Tensor, targets: Tensor) -> Tensor:
        self.head_weight = self._head.weight
        return super().__call__(hidden, targets)


def refuse_old_torch(quantization: Quantization) -> None:
    """Raises UserError for a quantised base if `fully_shard` cannot divide a parameter of bytes."""
    major, minor = (int(part) for part in torch.__version__.split(".")[:2])
    if quantization != "none" and (major, minor) < DIVIDES_BYTES:
        raise UserError(
            f"train.quantization is {quantization} with train.strategy fsdp2, which needs torch "
            f"{'.'.join(map(str, DIVIDES_BYTES))} or newer, but this machine has {torch.__version__}; update torch on "
            "every node, or use train.strategy ddp"
        )


def _groups(root: Any) -> list[FSDPModule]:
    return [module for module in root.modules() if isinstance(module, FSDPModule)]


def _local(tensor: Tensor) -> Tensor:
    assert isinstance(tensor, DTensor)
    return tensor.to_local().detach()
