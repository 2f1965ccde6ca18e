"""Run in a network namespace of its own, whose loopback then carries nothing else: prints bytes of training's steps.

Arguments: ranks, strategy, folder of the model, a folder to write to. Prints JSON: by LoRA rank, bytes of one step over
the loopback, all ranks together, and the bytes of the adapter in fp32.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

from support.rank_pool import RankPool
from support.strategy_cases import train_case

LORA_RANKS = (64, 256)
STEPS = (4, 12)


def sent_bytes() -> int:
    line = next(line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    return int(line.split(":")[1].split()[8])


def main(ranks: int, strategy: str, model: str, folder: str) -> dict[str, dict[str, float]]:
    measured = {}
    with RankPool(ranks) as pool:
        for rank in LORA_RANKS:
            moved, adapter = [], 0
            for steps in STEPS:
                changes = {
                    "strategy": strategy,
                    "lora": {"r": rank},
                    "max_steps": steps,
                    "checkpoint": {"every": "never"},
                    "evaluation": {"every": "never"},
                }
                before = sent_bytes()
                outcomes = pool.run(train_case, model, f"{folder}/{rank}-{steps}", changes)
                moved.append(sent_bytes() - before)
                adapter = sum(4 * math.prod(array.shape) for array in outcomes[0].adapter.values())
            measured[str(rank)] = {"step": (moved[1] - moved[0]) / (STEPS[1] - STEPS[0]), "adapter": adapter}
    return measured


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]), *sys.argv[2:])))
