"""The bytes that a pass keeps for backward, derived operation by operation from the code that runs.

Notation: H hidden size, I width of the MLP, Q and K widths of queries and keys, r rank of the adapters, b bytes of a
value in the computation's dtype. Attention is packed and keeps no score matrices. On a CPU it is SDPA, or in bf16
`train/kernels/attention/blocks.py`.
"""

from __future__ import annotations

from .counts import projections, target_sides
from .options import DeviceKind, Workload
from .shapes import ModelShape

FP32 = 4
INDEX = 8  # int64


def kept_by_layer(shape: ModelShape, work: Workload, device: DeviceKind) -> float:
    """Bytes per token of one decoder layer without checkpointing."""
    b, h, q, k = work.bytes_per_value, shape.hidden, shape.queries, shape.keys
    norms = 4 * (h * norm_input_bytes(work) + FP32)  # each keeps its input and one root mean square
    head_norms = (q + k) * norm_input_bytes(work) + (shape.heads + shape.kv_heads) * FP32
    attention = (q + 2 * k) * b + _attention_output(shape, work, device)
    mlp = (2 if work.fused else 3) * shape.inner * b  # gate and up; also gate's activation, if it is not made again
    return norms + head_norms + attention + mlp + _adapter_inputs(shape, work, device) + _adapter_inner(shape, work)


def norm_input_bytes(work: Workload) -> int:
    """Bytes of a value that a norm keeps: transformers' norms compute in fp32, fused ones keep the input unchanged."""
    return work.bytes_per_value if work.fused else FP32


def kept_by_layer_compiled(shape: ModelShape, work: Workload) -> float:
    """Bytes per token that torch 2.14's compiler keeps for backward of one decoder layer, on CUDA.

    It keeps the adapters' inputs, the base's products that norms and gating read again, attention's queries, keys and
    values, and one fp32 reciprocal root for each norm.
    """
    b, h, q, k = work.bytes_per_value, shape.hidden, shape.queries, shape.keys
    targets = target_sides(shape, work.lora_targets)
    attention = (q + 2 * k) * b + (q + k) * b + _attention_output(shape, work, "cuda")
    roots = (4 + shape.heads + shape.kv_heads) * FP32
    inputs = h * any(n in targets for n in ("q_proj", "k_proj", "v_proj")) + h * any(
        n in targets for n in ("gate_proj", "up_proj")
    )
    inputs += shape.inner * ("down_proj" in targets)
    return (3 * h + 2 * shape.inner + inputs) * b + attention + roots + _adapter_inner(shape, work)


def kept_by_layer_selective(shape: ModelShape, work: Workload, device: DeviceKind) -> float:
    """Bytes per token under `selective`: the layer's input, the results of matrix products, and attention's output."""
    b = work.bytes_per_value
    outputs = sum(outputs for _, outputs in projections(shape).values())
    return (shape.hidden + outputs) * b + _attention_output(shape, work, device) + _adapter_inner(shape, work)


def kept_by_layer_full(shape: ModelShape, work: Workload) -> float:
    """Bytes per token under `full`: only the layer's input."""
    return shape.hidden * work.bytes_per_value


def _attention_output(shape: ModelShape, work: Workload, device: DeviceKind) -> int:
    """Bytes per token of attention's output, and of one log-sum-exp a head, which block attention does not keep."""
    return shape.queries * work.bytes_per_value + (0 if _attends_in_blocks(work, device) else shape.heads * FP32)


def _attends_in_blocks(work: Workload, device: DeviceKind) -> bool:
    return device == "cpu" and work.dtype == "bf16"


def masks_of_layer(shape: ModelShape, work: Workload, device: DeviceKind) -> int:
    """Bytes of the masks that one sliding layer keeps if documents are longer than its window.

    SDPA takes such a document in blocks of queries, and keeps each block's mask in the computation's dtype.
    """
    document, window = work.document, shape.window
    if document <= window or device == "cuda" or _attends_in_blocks(work, device) or work.pictures != "none":
        return 0
    seen = 0
    for start in range(0, document, window):
        end = min(start + window, document)
        seen += (end - start) * (end - max(0, start - window + 1))
    return int(seen * work.bytes_per_value * work.tokens / document)


def picture_masks_of_layer(work: Workload, device: DeviceKind) -> int:
    """Bytes of the masks that any layer keeps of rows with pictures, where SDPA gets one for each document."""
    if work.pictures == "none" or device == "cuda" or _attends_in_blocks(work, device):
        return 0
    return work.document * work.tokens * work.bytes_per_value


def small_weights_of_layer(shape: ModelShape, work: Workload) -> int:
    """Bytes of one layer's weights that backward needs in another dtype: adapters' copies, and in torch fp32 norms."""
    norms = 0 if work.fused else (4 * shape.hidden + 2 * shape.head_dim) * FP32
    return adapter_copies_of_layer(shape, work) + norms


def adapter_copies_of_layer(shape: ModelShape, work: Workload) -> int:
    """Bytes of one layer's adapter copies in the computation's dtype (`kernels/adapter_copies.py`); also in fp32."""
    sides = target_sides(shape, work.lora_targets).values()
    return work.lora_rank * sum(inputs + outputs for inputs, outputs in sides) * work.bytes_per_value


def kept_outside_layers(shape: ModelShape, work: Workload) -> float:
    """Bytes per token of the final norm, the loss, the rotary tables and the tokens themselves."""
    b, h = work.bytes_per_value, shape.hidden
    final_norm = h * norm_input_bytes(work) + FP32
    loss = work.supervised * (h * b + INDEX)  # the gradient to the hidden states, and their positions
    rotary = 2 * 2 * shape.head_dim * b  # cosine and sine for sliding and global layers
    tokens = 2 * INDEX + 1  # tokens and positions in int64, and a bool: supervised
    return final_norm + loss + rotary + tokens


def kept_of_pictures(shape: ModelShape, work: Workload) -> int:
    """Bytes per token of rows with pictures, if all tokens are theirs: features, projected ones, and their copy."""
    if shape.vision is None or work.pictures == "none":
        return 0
    return (shape.vision.hidden + 2 * shape.hidden) * work.bytes_per_value


def spared_by_frozen_input(shape: ModelShape, work: Workload) -> int:
    """Bytes per token that the first layer's first norm does not keep, because the embedding needs no gradient."""
    return shape.hidden * norm_input_bytes(work) + FP32


def transient_of_layer(shape: ModelShape, work: Workload) -> float:
    """Bytes per token that exist only at the peak. The peak is in the MLP of the layer that backward enters first.

    There the gradients of the activation and of `up` exist beside all that the forward kept. Backward frees the
    layer's part only afterwards.
    """
    return 2 * shape.inner * work.bytes_per_value


def _adapter_inputs(shape: ModelShape, work: Workload, device: DeviceKind) -> int:
    """Bytes per token of the adapters' inputs. q, k and v share one, and so do gate and up.

    The input of o is attention's output; SDPA makes a copy of it, in which documents lie end to end. With dropout each
    adapter has an input of its own, and its mask (one byte a value on CUDA).
    """
    b, targets = work.bytes_per_value, target_sides(shape, work.lora_targets)
    if work.lora_dropout > 0:
        mask = 1 if device == "cuda" else b
        return sum(inputs * (b + mask) for inputs, _ in targets.values())
    own_output = device == "cuda" or _attends_in_blocks(work, device)
    shared = {
        ("q_proj", "k_proj", "v_proj"): shape.hidden,
        ("o_proj",): 0 if own_output else shape.queries,
        ("gate_proj", "up_proj"): shape.hidden,
        ("down_proj",): shape.inner,
    }
    return sum(width * b for names, width in shared.items() if any(name in targets for name in names))


def _adapter_inner(shape: ModelShape, work: Workload) -> int:
    """Bytes per token of x A^T, over all adapters of a layer."""
    return len(target_sides(shape, work.lora_targets)) * work.lora_rank * work.bytes_per_value
