"""Draws bar charts with numbers to read, and asks about each: the pictures of images.yaml. Then counts right answers.

python examples/charts.py charts                  # charts/*.png, charts/rows.jsonl to train on, charts/held-out.jsonl
python examples/charts.py charts --base tiny      # also a small random multimodal Gemma 3, to see a run without weights
python examples/charts.py charts --base tiny --score ADAPTER   # how many numbers of held-out charts it reads
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

BARS, HIGHEST = "ABC", 4
COLOURS = ((200, 60, 50), (60, 150, 70), (60, 90, 200))
SIDE = 192  # pixels of a chart
SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>")
SOFT = "<image_soft_token>"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the charts and their questions are")
    parser.add_argument("--count", type=int, default=400, help="charts to train on; a quarter as many are held out")
    parser.add_argument("--base", type=Path, help="also save a small random model here; with --score: the base")
    parser.add_argument("--score", type=Path, metavar="ADAPTER", help="draw nothing; ask this trained adapter")
    asked = parser.parse_args()
    if asked.score:
        if asked.base is None:
            parser.error("--score needs --base, the model that the adapter was trained on")
        score(asked.folder, asked.score, asked.base)
        return
    asked.folder.mkdir(parents=True, exist_ok=True)
    rng, rows = random.Random(1), list[dict[str, Any]]()
    heights = list(product(range(1, HIGHEST + 1), repeat=len(BARS)))
    rng.shuffle(heights)
    held_out = len(heights) // 4  # no chart to train on has the heights of one that is held out
    parts = (
        ("rows", "", asked.count, heights[held_out:]),
        ("held-out", "held-out-", asked.count // 4, heights[:held_out]),
    )
    for name, prefix, count, known in parts:
        own = list(charts(asked.folder, prefix, max(1, count), known, rng))
        (asked.folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
        print(f"{len(own)} questions in {asked.folder / name}.jsonl")
        rows += own
    if asked.base:
        save_random_base(asked.base, [turn["content"] for row in rows for turn in row["messages"]])
        print(f"a small random Gemma 3 that sees: {asked.base}")


def charts(
    folder: Path, prefix: str, count: int, known: list[tuple[int, ...]], rng: random.Random
) -> Iterator[dict[str, Any]]:
    """Draws charts, and asks about each of their bars. known: heights of three bars, of which a chart gets one"""
    for number in range(count):
        heights, name = rng.choice(known), f"{prefix}{number}.png"
        draw(heights, rng).save(folder / name)
        for bar, height in zip(BARS, heights, strict=True):
            asked = {"role": "user", "content": f"<image>How high is bar {bar}?"}
            yield {"messages": [asked, {"role": "assistant", "content": str(height)}], "images": [name]}


def draw(heights: tuple[int, ...], rng: random.Random) -> Any:
    from PIL import Image, ImageDraw

    chart = Image.new("RGB", (SIDE, SIDE), "white")
    pen, width = ImageDraw.Draw(chart), SIDE // len(BARS)
    for place, (name, height, colour) in enumerate(zip(BARS, heights, COLOURS, strict=True)):
        left, floor = width * place + rng.randint(3, 9), SIDE - rng.randint(22, 28)
        top, tint = floor - height * 140 // HIGHEST, rng.randint(-30, 30)
        pen.rectangle((left, top, left + width - 12, floor), fill=tuple(part + tint for part in colour))
        pen.text((left + width // 2 - 12, top - 20), str(height), fill="black", font_size=18)
        pen.text((left + width // 2 - 12, SIDE - 22), name, fill="black", font_size=18)
    return chart


def score(folder: Path, adapter: Path, base: Path) -> None:
    """Asks by transformers' and peft's own classes, with each held-out chart and with a white picture in its place."""
    from peft import PeftModel
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(base)
    model = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(base, dtype="auto"), adapter).eval()
    lines = (folder / "held-out.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines[:: len(BARS) + 1]]  # of each bar in turn
    right = {"with the charts": 0, "with a white picture in their place": 0}
    for row in rows:
        asked, answer = (turn["content"] for turn in row["messages"])
        pictures = Image.open(folder / row["images"][0]), Image.new("RGB", (SIDE, SIDE), "white")
        for shown, picture in zip(right, pictures, strict=True):
            content = [{"type": "image", "image": picture}, {"type": "text", "text": asked.removeprefix("<image>")}]
            inputs = processor.apply_chat_template(
                [{"role": "user", "content": content}],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
            ).to(model.device, model.dtype)
            output = model.generate(**inputs, max_new_tokens=4, do_sample=False)
            said = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            right[shown] += said.strip() == answer
    for shown, count in right.items():
        print(f"{count} of {len(rows)} numbers are read right {shown}")


def save_random_base(folder: Path, texts: list[str]) -> None:
    """Saves a Gemma 3 of every mechanism, a few megabytes large, with a tokenizer and the processor that it needs."""
    import torch
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    save_tokenizer(folder, texts)
    text = {"vocab_size": 512, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "head_dim": 32}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 1, "query_pre_attn_scalar": 32, "sliding_window": 64}
    text |= {"layer_types": ["sliding_attention", "full_attention"] * 2, "max_position_embeddings": 4096}
    text |= {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2, "initializer_range": 0.08}
    vision = {"hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 3, "num_attention_heads": 4}
    vision |= {"image_size": 96, "patch_size": 8, "vision_use_head": False}
    tokens = {"boi_token_index": 6, "eoi_token_index": 7, "image_token_index": len(SPECIAL)}
    torch.manual_seed(0)
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=16, **tokens)
    model = Gemma3ForConditionalGeneration(config)
    model.model.multi_modal_projector.mm_input_projection_weight.data.normal_(std=0.1)  # transformers begins with zeros
    model.save_pretrained(folder)
    pictures = {"size": {"height": 96, "width": 96}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    pictures |= {"image_processor_type": "Gemma3ImageProcessor", "rescale_factor": 1 / 255, "resample": 2}
    processor = {"processor_class": "Gemma3Processor", "image_seq_length": 16}
    (folder / "preprocessor_config.json").write_text(json.dumps({**pictures, **processor}, indent=2))


def save_tokenizer(folder: Path, texts: list[str]) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=[*SPECIAL, SOFT], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([*texts, "user model"], trainer)
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    names |= {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": SOFT}
    turns = ["<start_of_turn>", "<end_of_turn>"]
    PreTrainedTokenizerFast(tokenizer_object=backend, extra_special_tokens=turns, **names).save_pretrained(folder)


if __name__ == "__main__":
    main()
