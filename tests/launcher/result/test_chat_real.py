"""The real 270M, trained on chats and merged, ends its answers by itself under transformers' own `generate`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from gemfleet.train.data.demo import demo_data_rows
from support.tiny_run import gemfleet

pytestmark = [pytest.mark.slow, pytest.mark.real, pytest.mark.timeout(1500)]
MOST_NEW_TOKENS = 48


def train_chats(folder: Path, home: Path) -> Path:
    """A short run of `model: demo` on six chats; returns its published folder."""
    rows = [row for row in demo_data_rows() if len(row["completion"]) < 60][:6]
    turns = [
        [{"role": "user", "content": row["prompt"].strip()}, {"role": "assistant", "content": row["completion"]}]
        for row in rows
    ]
    (folder / "chats.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in turns))
    train = {
        "model": "demo",
        "data": {"train": "chats.jsonl", "eval_fraction": 0.0, "max_length": 128},
        "batch": {"global": 6, "micro": 6},
        "optim": {"learning_rate": 1e-3, "schedule": "constant_with_warmup"},
        "epochs": 20,
        "checkpoint": {"every": "never"},
    }
    config = {
        "train": train,
        "cluster": {"address": "local", "workers": 1},
        "output": {"formats": ["adapter", "merged"]},
    }
    (folder / "chat.yaml").write_text(yaml.safe_dump({**config, "api": {"enabled": False}}))
    process = gemfleet(folder, home, "train", "chat.yaml")
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output
    (published,) = home.glob("runs/*/output")
    return published


def test_an_answer_ends_by_itself(demo_model: Path, gemfleet_home: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    published = train_chats(tmp_path, gemfleet_home)
    merged = published / "merged"
    tokenizer = AutoTokenizer.from_pretrained(merged)
    model = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
    end = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    chats = [json.loads(line)["messages"] for line in (tmp_path / "chats.jsonl").read_text().splitlines()]
    ended = []
    for chat in chats:
        inputs = tokenizer.apply_chat_template(
            chat[:1], add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        asked = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"], "do_sample": False}
        answer = model.generate(**asked, max_new_tokens=MOST_NEW_TOKENS)[0, inputs["input_ids"].shape[1] :].tolist()
        ended.append(answer[-1] == end and len(answer) < MOST_NEW_TOKENS)
        if not ended[:-1]:
            print(f"{chat[0]['content']!r}: {tokenizer.decode(answer)!r}")
            endless = model.generate(**asked, max_new_tokens=MOST_NEW_TOKENS, eos_token_id=tokenizer.eos_token_id)
            assert endless.shape[1] - inputs["input_ids"].shape[1] == MOST_NEW_TOKENS  # the base's own end alone
    print(f"{sum(ended)} of {len(ended)} answers end with <end_of_turn> by themselves")
    assert all(ended)
    run_card(published)


def run_card(published: Path) -> None:
    """The card's code, as a script of its own."""
    (code,) = re.findall(r"```python\n(.*?)```", (published / "README.md").read_text(), re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], cwd=published, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    print(f"the card's code printed: {done.stdout.strip()!r}")
    assert done.stdout.strip()
