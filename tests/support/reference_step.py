"""The same step done twice: by plain transformers + peft on padded batches with full logits, and by gemfleet."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gemfleet.train.config.sections.recipe import LoraConfig, OptimConfig
from gemfleet.train.data.packing import TokenBlock, pack_steps
from gemfleet.train.model.gemma import TrainableModel, attach_lora
from gemfleet.train.strategies.ddp import DdpStrategy
from safetensors.torch import save_file
from support.tiny_model import tiny_gemma3

LENGTHS = (20, 5, 33, 9, 14, 27, 3, 11)
VOCABULARY = 512
LORA = LoraConfig(r=4, alpha=8.0)

Gradients = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Case:
    """How gemfleet does the step: row length, rows in a pass, ranks."""

    max_length: int
    micro: int
    ranks: int


def examples(seed: int = 0) -> TokenBlock:
    """Eight random documents, some longer than the sliding window; about half of their tokens supervised."""
    rng = np.random.default_rng(seed)
    supervised = [rng.random(n) > 0.5 for n in LENGTHS]
    for flags in supervised:
        flags[0], flags[-1] = False, True
    return TokenBlock(
        rng.integers(3, VOCABULARY, sum(LENGTHS)).astype(np.int32),
        np.concatenate(supervised),
        np.concatenate([[0], np.cumsum(LENGTHS)]),
    )


def trainable(seed: int = 0, device: str = "cpu", dtype: torch.dtype = torch.float32) -> TrainableModel:
    """A tiny Gemma 3 whose adapters are all non-zero, so that every gradient is."""
    model = attach_lora(tiny_gemma3(seed).requires_grad_(False).to(device, dtype), LORA, seed, "tiny")
    fill_adapters(model.peft_model)
    return model


def fill_adapters(peft_model: Any) -> None:
    generator = torch.Generator().manual_seed(11)
    for _, parameter in sorted(peft_model.named_parameters()):
        if parameter.requires_grad:
            parameter.data = (torch.randn(parameter.shape, generator=generator) * 0.1).to(parameter.device)


def reference() -> tuple[float, Gradients]:
    """Mean loss per supervised token and adapter gradients, with nothing of gemfleet in the computation."""
    from peft import LoraConfig as PeftLoraConfig
    from peft import get_peft_model

    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(tiny_gemma3(), PeftLoraConfig(r=LORA.r, lora_alpha=LORA.alpha, target_modules=names))
    fill_adapters(model)
    block = examples()
    width = max(LENGTHS)
    ids, mask = torch.zeros(len(block), width, dtype=torch.long), torch.zeros(len(block), width, dtype=torch.long)
    labels = torch.full((len(block), width), -100)
    for row, (start, end) in enumerate(zip(block.offsets[:-1], block.offsets[1:], strict=True)):
        tokens = torch.from_numpy(block.tokens[start:end]).long()
        ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
        labels[row, : len(tokens)] = torch.where(torch.from_numpy(block.supervised[start:end]), tokens, -100)
    logits = model(input_ids=ids, attention_mask=mask).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, VOCABULARY), labels[:, 1:].reshape(-1))
    loss.backward()
    return float(loss), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def gemfleet_step(case: Case, rank: int) -> tuple[float, Gradients]:
    """This rank's part of the step, reduced over all ranks of the process group."""
    model = trainable()
    strategy = DdpStrategy(OptimConfig())
    strategy.setup(model)
    step = pack_steps([examples()], case.ranks, case.max_length).step(0, rank)
    total = 0.0
    for part in step.rows.micro_batches(case.micro):
        loss = model.loss_sum(part) / step.step_supervised_tokens
        strategy.backward(loss)
        total += float(loss.detach())
    strategy.reduce_gradients()
    (mean_loss,) = strategy.sum_over_ranks([total])
    return mean_loss, {name: p.grad for name, p in model.adapter_parameters().items() if p.grad is not None}


def run_rank(rank: int, cases: list[Case], folder: str) -> None:
    """Entry of a spawned process: all cases on `cases[0].ranks` ranks; rank 0 saves what came out."""
    import torch.distributed as dist

    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    store = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=cases[0].ranks)
    for number, case in enumerate(cases):
        loss, gradients = gemfleet_step(case, rank)
        if rank == 0:
            save_file(
                {"loss": torch.tensor(loss, dtype=torch.float64), **gradients}, Path(folder) / f"{number}.safetensors"
            )
    dist.destroy_process_group()


def relative_difference(ours: Gradients, theirs: Gradients) -> float:
    """Largest over all tensors of |ours - theirs| / |theirs|."""
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).norm() / theirs[name].norm()) for name in theirs)
