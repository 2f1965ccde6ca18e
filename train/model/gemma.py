"""Gemma 3 for training on text: loads a text-only or multimodal checkpoint, attaches LoRA, runs a pass."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config.schema import Quantization
from ..config.sections.recipe import LoraConfig
from ..context.group import ContextGroup
from ..context.shares import LEAST_TOKENS
from ..errors import UserError
from ..interfaces import PackedRows
from ..kernels.activation_checkpointing import checkpoint_layers
from ..kernels.adapter_copies import AdapterCopies
from ..kernels.attention.packed import prepare_for_graphs, register_packed_attention
from ..kernels.capabilities import Choices, attention_kernel
from ..kernels.compilation import SELECTIVE_BUDGET, compile_layers
from ..kernels.fused.modules import use_fused
from ..kernels.liger import use_liger
from ..kernels.lora import fuse_lora_projections
from ..kernels.loss import SupervisedCrossEntropy
from ..kernels.passes import PassInputs, pass_inputs
from ..kernels.quantization import loading_options, multiply_exactly, store_in_8_bits
from ..kernels.shared_inputs import share_inputs
from ..planning import shape_of_config
from ..planning.mixed_bits import eight_bit_projections
from .base_check import gemma_config
from .multimodal import VISION_MODULES, base_model_class
from .starting_adapter import load_adapter
from .vision.sight import Sight

log = logging.getLogger("gemfleet.train")

EXCLUDED = rf".*{VISION_MODULES[0]}.*"  # from adapters, by a pattern that peft matches with whole names
LINEAR_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass
class TrainableModel:
    """A Gemma 3 with adapters, as the step needs it.

    peft_model:    owns the adapters and saves them in PEFT's layout
    text_model:    the decoder below it (embedding, layers, final norm); returns hidden states
    criterion:     the head and its loss; its weight is frozen and tied to the embedding
    device:        the device that runs passes
    copies:        of the adapters, made for each pass; None if a strategy gathers them layer by layer
    context:       the ranks that share each pass with this one; None if this rank computes its own passes
    sight:         for rows with pictures; None: there are none
    """

    peft_model: Any
    text_model: nn.Module
    criterion: SupervisedCrossEntropy
    device: torch.device
    copies: AdapterCopies | None = None
    context: ContextGroup | None = None
    sight: Sight | None = None

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers, in order."""
        layers = self.text_model.layers
        assert isinstance(layers, nn.ModuleList)
        return layers

    def adapter_parameters(self) -> dict[str, nn.Parameter]:
        """The trainable parameters by their name in the peft model, in a fixed order."""
        return {name: p for name, p in self.peft_model.named_parameters() if p.requires_grad}

    def take_pictures_seen(self) -> int:
        """How many pictures the vision tower has seen on this rank since the last call."""
        return 0 if self.sight is None else self.sight.features.take_count()

    def computed_tokens(self, rows: PackedRows) -> int:
        """The number of tokens that this rank's decoder computes for these rows: at least `LEAST_TOKENS`."""
        if self.context is not None:
            return self.context.shared(rows).own.tokens
        return max(LEAST_TOKENS, len(rows.tokens))

    def counted_once(self, figure: float) -> float:
        """A figure of this rank's rows, for a sum over all ranks: of a context group, only one rank counts it."""
        return figure if self.context is None or self.context.index == 0 else 0.0

    def loss_sum(self, rows: PackedRows) -> Tensor:
        """The sum of cross-entropy over the rows' supervised tokens. An fp32 scalar, differentiable.

        In a context group it is this rank's part of the sum, and a collective.
        """
        inputs = self.inputs_of(rows)
        return self.criterion(self.hidden_states(inputs).index_select(0, inputs.predicting), inputs.targets)

    def inputs_of(self, rows: PackedRows) -> PassInputs:
        """The inputs of a pass over these rows, on the device."""
        kernel = attention_kernel(self.device, self.criterion.head_weight.dtype, bool(len(rows.pictures)))
        if self.context is not None:
            shared = self.context.shared(rows)
            return pass_inputs(shared.rows, self.device, kernel, shared)
        soft_tokens = 0 if self.sight is None else self.sight.soft_tokens
        return pass_inputs(rows.padded_to(self.computed_tokens(rows)), self.device, kernel, soft_tokens=soft_tokens)

    def hidden_states(self, inputs: PassInputs) -> Tensor:
        """The final hidden states. [T, hidden size]"""
        if self.copies is not None:
            self.copies.refresh()
        with nullcontext() if self.sight is None else self.sight.on(inputs.pictures, inputs.soft):
            # Given masks of None, the model builds none: the attention function knows the documents.
            output = self.text_model(
                input_ids=inputs.tokens.unsqueeze(0),
                position_ids=inputs.positions.unsqueeze(0),
                attention_mask={"full_attention": None, "sliding_attention": None},
                use_cache=False,
                packing=inputs.packing,
            )
        hidden: Tensor = output.last_hidden_state[0]
        return hidden


def load_base_model(folder: Path, dtype: torch.dtype, device: torch.device, quantization: Quantization = "none") -> Any:
    """The plain transformers model of a checked folder, frozen. Of a multimodal model, it is the text part."""
    config = gemma_config(folder)
    eight_bits = projections_in_8_bits(folder, quantization) if quantization == "int4" else ()
    options = loading_options(quantization, eight_bits, dtype, device)
    model = base_model_class(config).from_pretrained(
        folder, config=config, dtype=dtype, use_safetensors=True, **options
    )
    if quantization == "none":
        model = model.to(device)
    else:
        store_in_8_bits(model, eight_bits)
        log.info("%s: %d linear layers, dequantised for each product", quantization, multiply_exactly(model))
    return model.requires_grad_(False)


def projections_in_8_bits(folder: Path, quantization: Quantization) -> tuple[str, ...]:
    """The projections of a checked folder's model that this quantisation holds in 8 bits, not in 4."""
    if quantization != "int4":
        return LINEAR_MODULES if quantization == "int8" else ()
    return eight_bit_projections(shape_of_config(gemma_config(folder).to_dict(), folder.name))


def language_model_of(model: Any) -> Any:
    """The decoder stack of a text-only or a multimodal Gemma 3."""
    inner = model.model
    return inner.language_model if hasattr(inner, "language_model") else inner


def lora_targets(model: Any, target_modules: str | list[str]) -> list[str]:
    """The full names of the modules that get an adapter.

    `all-linear` means the language model's projections. The vision tower never gets one, nor does `lm_head`: its
    weight is tied to the embedding, which a merge would corrupt. Raises UserError for `lm_head` and for a name that
    matches no module.
    """
    prefix = _language_prefix(model)
    head = model.get_output_embeddings()
    if target_modules == "all-linear":
        return [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n.startswith(prefix)]
    wanted = [target_modules] if isinstance(target_modules, str) else target_modules
    chosen: list[str] = []
    for name in wanted:
        matching = [
            n
            for n, m in model.named_modules()
            if isinstance(m, nn.Linear) and m is not head and (n == name or n.endswith(f".{name}"))
        ]
        if not matching:
            raise UserError(
                f"train.lora.target_modules names {name!r}, but the model has no linear layer of that name; "
                f"use `all-linear` or some of: {', '.join(LINEAR_MODULES)}"
            )
        inside = [n for n in matching if n.startswith(prefix)]
        chosen += inside or matching
    return sorted(set(chosen))


def _language_prefix(model: Any) -> str:
    return "model.language_model.layers." if hasattr(model.model, "language_model") else "model.layers."


def attach_lora(
    model: Any,
    lora: LoraConfig,
    seed: int,
    base_name: str,
    adapter: Path | None = None,
    loss_chunk: int | None = None,
    sight: Sight | None = None,
) -> TrainableModel:
    """Wraps `model` with fp32 adapters and fuses their projections.

    adapter: the checked folder of the one to go on from; None: seeded new ones (A random, B zero). A trained projector
        begins as the base's
    loss_chunk: see `SupervisedCrossEntropy`; sight: see `TrainableModel`
    """
    from peft import LoraConfig as PeftLoraConfig
    from peft import get_peft_model

    torch.manual_seed(seed)
    if sight is not None and sight.trained:
        model.model.multi_modal_projector = sight.projector
    language_model_of(model).set_attn_implementation(register_packed_attention())
    peft_config = PeftLoraConfig(
        r=lora.r,
        lora_alpha=int(lora.alpha) if lora.alpha.is_integer() else lora.alpha,  # peft and servers call it an int
        lora_dropout=lora.dropout,
        target_modules=peft_targets(model, lora_targets(model, lora.target_modules)),
        bias="none",
        modules_to_save=[VISION_MODULES[1]] if sight is not None and sight.trained else None,
        task_type="CAUSAL_LM",
        base_model_name_or_path=base_name,
    )
    head_weight = model.lm_head.weight
    peft_model = get_peft_model(model, peft_config, autocast_adapter_dtype=True)
    # peft has put the folder of the weights there.
    peft_model.peft_config["default"].base_model_name_or_path = base_name
    # Servers load the vision tower, whose modules have the same names. It is not here, and peft would warn.
    peft_model.peft_config["default"].exclude_modules = EXCLUDED if hasattr(model.model, "language_model") else None
    for parameter in peft_model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if adapter is not None:
        load_adapter(adapter, {name: p for name, p in peft_model.named_parameters() if ".lora_" in name})
    fused, adapted = fuse_lora_projections(peft_model), len(peft_model.targeted_module_names)
    share_inputs(peft_model)
    log.info("adapters on %d layers: %d by the fused projection, %d by peft", adapted, fused, adapted - fused)
    base = peft_model.get_base_model()
    peft_model.train()
    if sight is not None:
        sight.attach(base, language_model_of(base).embed_tokens)
    return TrainableModel(
        peft_model,
        language_model_of(base),
        SupervisedCrossEntropy(head_weight, _softcap(base.config), loss_chunk),
        head_weight.device,
        AdapterCopies(peft_model, head_weight.dtype),
        sight=sight,
    )


def prepare_layers(model: TrainableModel, choices: Choices) -> None:
    """Applies kernels and compilation, then recomputation around them. A strategy may shard the layers only later."""
    if choices.elementwise == "liger":
        log.info("liger: %d norms and MLPs", use_liger(model.text_model))
    if choices.elementwise == "c++":
        log.info("c++: %d norms and MLPs", use_fused(model.text_model))
    if choices.compile:
        prepare_for_graphs(choices.attention_in_graphs and model.context is None)
        compile_layers(model.layers, SELECTIVE_BUDGET if choices.compiler_recomputes else 1.0)
    if not choices.compiler_recomputes:
        checkpoint_layers(model.layers, choices.activation_checkpointing)


def peft_targets(model: Any, names: list[str]) -> list[str]:
    """What peft and servers call these modules: the last parts of the names.

    Full names, if other layers of the language model have modules of the same last parts.
    """
    leaves = sorted({name.rpartition(".")[2] for name in names})
    same = [n for n in lora_targets(model, "all-linear") if n.rpartition(".")[2] in leaves]
    return leaves if set(same) == set(names) else names


def _softcap(config: Any) -> float | None:
    text_config = getattr(config, "text_config", config)
    cap: float | None = getattr(text_config, "final_logit_softcapping", None)
    return cap
