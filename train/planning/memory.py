"""The memory of one rank at its peak, part by part."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from ..config.deepspeed_json import REDUCE_BUCKET_VALUES
from ..config.sections.sharing import LOSS_BLOCK_WORDS, LOSS_CHUNK_ROWS
from ..context.shares import Share
from . import activations, context
from .counts import (
    body_linear,
    embedding,
    language_parameters,
    layer_linear,
    layer_parameters,
    lora_layer,
    lora_parameters,
    projections,
    projector_parameters,
    tower_parameters,
)
from .mixed_bits import eight_bit_projections
from .options import DeviceKind, Sharing, Workload
from .shapes import ModelShape

FP32 = 4
INT64 = 8
MIB = 2**20

DDP_BUCKET = 64 * MIB  # as in train/strategies/ddp.py
ZERO3_PREFETCH_VALUES = 5 * 10**7  # DeepSpeed's stage3_prefetch_bucket_size

# NF4 in blocks of 32, with an 8-bit scale for each block and an fp32 scale for 256 blocks (train/kernels/nf4.py).
INT4_BYTES = 0.5 + 1 / 32 + FP32 / (32 * 256)

# Assumptions about CUDA, not measured: the context with cuBLAS and NCCL, and the caching allocator's slack.
CUDA_RUNTIME = 800 * MIB
CUDA_SLACK = 0.05
# Measured on a CPU by `gemfleet bench plan`: what libraries take once, and what stays resident though it is free,
# because glibc keeps it in pieces that the next tensors do not fill: a share of the activations, what a layer computes
# with for each token of a pass, and a share of the gathered layers that are too small to be mapped on their own.
CPU_RUNTIME = 48 * MIB
CPU_SLACK = 0.25
CPU_SLACK_TOKEN = 0.12 * MIB
CPU_SLACK_GATHERED = 0.6
CPU_MAPPED = 32 * MIB  # as in train/device/abilities.py
CPU_PROCESS = 400 * MIB  # a process that has imported everything; predictions do not include it


@dataclass(frozen=True)
class MemoryParts:
    """Bytes by purpose. gathered: weights of other ranks, held for a while; communication: buffers of collectives

    logits: the loss's two buffers of one chunk; transient: what backward adds to the activations at the peak
    runtime: libraries and the allocator's slack
    """

    weights: int
    adapters: int
    gradients: int
    optimizer: int
    activations: int
    transient: int
    logits: int
    gathered: int
    communication: int
    runtime: int

    @property
    def total(self) -> int:
        return sum(asdict(self).values())


def memory_per_rank(
    shape: ModelShape, work: Workload, sharing: Sharing, ranks: int, device: DeviceKind = "cuda"
) -> MemoryParts:
    """The peak of one rank. It is at the beginning of backward: all activations, and gradients of earlier passes.

    Of the ranks that share a pass, it is that of the one that needs most.
    """
    if sharing.context == 1:
        return _of_rank(shape, work, sharing, ranks, device, None)
    found = (
        _of_rank(shape, context.work_of_share(work, share), sharing, ranks, device, share)
        for share in context.neediest(shape, work, sharing.context)
    )
    return max(found, key=lambda parts: parts.total)


def _of_rank(
    shape: ModelShape, work: Workload, sharing: Sharing, ranks: int, device: DeviceKind, share: Share | None
) -> MemoryParts:
    """share: of the pass, which is all of the rank's work; None: the rank has whole passes"""
    trained = lora_parameters(shape, work.lora_rank, work.lora_targets) * FP32
    weights = weight_bytes(shape, work)
    kept = activation_bytes(shape, work, sharing, device)
    if share is not None:
        kept += context.earlier_kept(shape, work, sharing, share)
        kept += context.mask_kept(work, share)
    transient = transient_bytes(shape, work, sharing, device)
    logits = logits_bytes(shape, work, device)
    return MemoryParts(
        weights=_share(weights, ranks if sharing.divides_weights else 1) + sight_bytes(shape, work),
        adapters=_share(trained, ranks if sharing.divides_weights else 1),
        gradients=_share(trained, ranks if sharing.divides_gradients else 1),
        optimizer=_share(optimizer_bytes(shape, work, sharing), ranks if sharing.divides_optimizer else 1),
        activations=kept,
        transient=transient,
        logits=logits,
        gathered=gathered_bytes(shape, work, sharing, ranks, device),
        communication=communication_bytes(shape, work, sharing, ranks),
        runtime=_runtime(shape, work, sharing, device, kept + transient),
    )


def _runtime(shape: ModelShape, work: Workload, sharing: Sharing, device: DeviceKind, activations_bytes: int) -> int:
    """Bytes of libraries and of what allocators hold free."""
    if device == "cuda":
        return CUDA_RUNTIME + int(CUDA_SLACK * activations_bytes)
    free = CPU_SLACK * activations_bytes + CPU_SLACK_TOKEN * work.tokens
    layer = layer_bytes(shape, work)
    if sharing.name == "fsdp2" and work.quantization != "none" and layer < CPU_MAPPED:
        free += CPU_SLACK_GATHERED * shape.layers * layer
    return CPU_RUNTIME + int(free)


def weight_bytes(shape: ModelShape, work: Workload) -> int:
    """Bytes of the whole frozen language model, without a vision tower. Only linear layers may be quantised."""
    linear = body_linear(shape)
    others = language_parameters(shape) - linear
    return others * work.bytes_per_value + _linear_bytes(shape, work)


def layer_bytes(shape: ModelShape, work: Workload) -> int:
    """Bytes of one decoder layer's frozen weights, as they are stored."""
    norms = layer_parameters(shape) - layer_linear(shape)
    return _linear_bytes(shape, work) // shape.layers + norms * work.bytes_per_value


def sight_bytes(shape: ModelShape, work: Workload) -> int:
    """Bytes of the projector, and of a vision tower at work; both whole on every rank, and never quantised.

    A tower whose features are kept is gone before the first step. It works on one picture without gradients: beside
    a layer's states it holds the widest results of attention or of the MLP. A trained projector is there in fp32 too,
    with its gradient and AdamW's two moments.
    """
    if shape.vision is None or work.pictures == "none":
        return 0
    vision, held = shape.vision, projector_parameters(shape)
    trained = 4 * FP32 * held if work.projector_trained else 0
    if work.pictures == "anew":
        held += tower_parameters(vision) + vision.patches * (3 * vision.hidden + 2 * vision.inner)
    return held * work.bytes_per_value + trained


def _linear_bytes(shape: ModelShape, work: Workload) -> int:
    """Bytes of all layers' linear weights."""
    if work.quantization == "none":
        return body_linear(shape) * work.bytes_per_value
    layer = projections(shape)
    eight_bits = layer if work.quantization == "int8" else eight_bit_projections(shape)
    found = sum(
        inputs * outputs + outputs * FP32 if name in eight_bits else inputs * outputs * INT4_BYTES
        for name, (inputs, outputs) in layer.items()
    )
    return int(found * shape.layers)


def optimizer_bytes(shape: ModelShape, work: Workload, sharing: Sharing) -> int:
    """Bytes of AdamW's two moments in fp32. DeepSpeed also keeps an fp32 copy of the parameters, divided like them."""
    copies = 3 if sharing.name.startswith("zero") else 2
    return lora_parameters(shape, work.lora_rank, work.lora_targets) * FP32 * copies


def activation_bytes(shape: ModelShape, work: Workload, sharing: Sharing, device: DeviceKind) -> int:
    """Bytes that one pass keeps for backward."""
    if sharing.checkpointing == "off":
        layers = _layers_kept_whole(shape, work, sharing, device, shape.layers, shape.sliding_layers)
        if not _is_compiled(work, sharing):
            layers -= activations.spared_by_frozen_input(shape, work) * work.tokens
    elif sharing.checkpointing == "selective":
        layers = shape.layers * activations.kept_by_layer_selective(shape, work, device) * work.tokens
    else:
        layers = shape.layers * activations.kept_by_layer_full(shape, work) * work.tokens
    if sharing.checkpointing != "off" and not sharing.divides_weights:
        layers += shape.layers * activations.adapter_copies_of_layer(shape, work)  # for the whole pass
    layers += activations.kept_of_pictures(shape, work) * work.tokens
    return int(layers + activations.kept_outside_layers(shape, work) * work.tokens)


def transient_bytes(shape: ModelShape, work: Workload, sharing: Sharing, device: DeviceKind) -> int:
    """Bytes that backward adds to the activations at the peak: gradients in use, and what it computes again.

    Under checkpointing it computes one layer's activations again; of a quantised base, the largest weight.
    """
    extra = activations.transient_of_layer(shape, work) * work.tokens
    if sharing.checkpointing != "off":
        extra += _layers_kept_whole(shape, work, sharing, device, 1, min(1, shape.sliding_layers))
    if sharing.checkpointing == "selective" and _is_compiled(work, sharing):
        # The kept results are used, none is made again.
        extra -= activations.kept_by_layer_selective(shape, work, device) * work.tokens
    if work.quantization != "none":
        extra += max(inputs * outputs for inputs, outputs in projections(shape).values()) * work.bytes_per_value
    return int(extra)


def _is_compiled(work: Workload, sharing: Sharing) -> bool:
    return sharing.name in work.compiled


def _layers_kept_whole(
    shape: ModelShape, work: Workload, sharing: Sharing, device: DeviceKind, layers: int, sliding: int
) -> float:
    if _is_compiled(work, sharing):
        kept = activations.kept_by_layer_compiled(shape, work) * work.tokens
        return layers * (kept + activations.adapter_copies_of_layer(shape, work))
    masks = activations.masks_of_layer(shape, work, device)
    tokens = activations.kept_by_layer(shape, work, device) * work.tokens
    each = tokens + activations.small_weights_of_layer(shape, work) + activations.picture_masks_of_layer(work, device)
    return layers * each + sliding * masks


def logits_bytes(shape: ModelShape, work: Workload, device: DeviceKind) -> int:
    """Bytes of one chunk of logits in the computation's dtype and one in fp32; on a CPU, of one block of the words.

    Where the C++ for CPUs is built the second is in the computation's dtype, and a block's rows of the head are copied.
    """
    words = shape.vocabulary if device == "cuda" else min(shape.vocabulary, LOSS_BLOCK_WORDS)
    rows, b = work.chunk_rows or LOSS_CHUNK_ROWS[device][0], work.bytes_per_value
    if device == "cpu" and work.fused:
        return words * (rows * 2 * b + shape.hidden * b + INT64)
    return rows * words * (b + FP32)


def gathered_bytes(shape: ModelShape, work: Workload, sharing: Sharing, ranks: int, device: DeviceKind) -> int:
    """Bytes of weights that are gathered from other ranks and held beside this rank's share.

    fsdp2 holds the embedding from forward to backward, and two layers (one in use, one on its way), or all layers if
    they stay gathered. ZeRO-3 holds the embedding while it is used, a layer, and what it prefetches.

    On a CPU, gloo copies what it gathers: this rank's share and the whole. The heap keeps the room of the largest copy,
    the embedding's. ZeRO-3 gathers it twice, for the tokens and for the head. Activations in between take the first
    copy's room.
    """
    if ranks == 1 or not sharing.divides_weights:
        return 0
    b = work.bytes_per_value
    layer = layer_bytes(shape, work) + lora_layer(shape, work.lora_rank, work.lora_targets) * b
    root = (embedding(shape) + shape.hidden) * b
    copied = root + _share(root, ranks) if device == "cpu" else 0
    if sharing.name == "zero3":
        times = 2 if device == "cpu" else 1
        return times * (root + copied) + 2 * layer + ZERO3_PREFETCH_VALUES * b
    held = min(2, shape.layers) if sharing.reshard else shape.layers
    return root + copied + held * layer


def communication_bytes(shape: ModelShape, work: Workload, sharing: Sharing, ranks: int) -> int:
    """Bytes of the buffers in which gradients are reduced; 0 for a single rank."""
    if ranks == 1:
        return 0
    trained = lora_parameters(shape, work.lora_rank, work.lora_targets) * FP32
    if sharing.name == "ddp":
        return min(trained, DDP_BUCKET)
    if sharing.name == "fsdp2":
        return trained  # gradients of earlier passes stay whole until the step's one reduction
    return min(trained, REDUCE_BUCKET_VALUES * FP32)


def _share(size: int, ranks: int) -> int:
    """One rank's part of `size`, rounded up."""
    return -(-size // ranks)
