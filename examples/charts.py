"""Draws bar charts with numbers to read, and asks about each: the pictures of images.yaml.

python examples/charts.py charts                  # charts/*.png and charts/rows.jsonl
python examples/charts.py charts --base tiny      # also a small random multimodal Gemma 3, to see a run without weights
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BARS, HIGHEST = "ABC", 9
COLOURS = ((200, 60, 50), (60, 150, 70), (60, 90, 200))
SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>")
SOFT = "<image_soft_token>"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the charts and rows.jsonl go")
    parser.add_argument("--count", type=int, default=200, help="charts to draw")
    parser.add_argument("--base", type=Path, help="also save a small random model here")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    rows = list(charts(asked.folder, asked.count, random.Random(1)))
    (asked.folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(f"{len(rows)} questions about {asked.count} charts in {asked.folder / 'rows.jsonl'}")
    if asked.base:
        save_random_base(asked.base, [turn["content"] for row in rows for turn in row["messages"]])
        print(f"a small random Gemma 3 that sees: {asked.base}")


def charts(folder: Path, count: int, rng: random.Random) -> Iterator[dict[str, Any]]:
    """Draws the charts, and gives two questions about each, with their answers."""
    for number in range(count):
        heights = rng.sample(range(1, HIGHEST + 1), len(BARS))
        name = f"{number}.png"
        draw(heights).save(folder / name)
        bar = rng.randrange(len(BARS))
        yield row(name, "Which bar is the highest?", BARS[heights.index(max(heights))])
        yield row(name, f"What number stands on bar {BARS[bar]}?", str(heights[bar]))


def draw(heights: list[int]) -> Any:
    from PIL import Image, ImageDraw

    chart = Image.new("RGB", (192, 192), "white")
    pen = ImageDraw.Draw(chart)
    for place, (name, height, colour) in enumerate(zip(BARS, heights, COLOURS, strict=True)):
        left, top = 14 + 60 * place, 164 - 15 * height
        pen.rectangle((left, top, left + 44, 164), fill=colour)
        pen.text((left + 16, top - 20), str(height), fill="black", font_size=18)
        pen.text((left + 16, 168), name, fill="black", font_size=18)
    return chart


def row(picture: str, question: str, answer: str) -> dict[str, Any]:
    asked = {"role": "user", "content": f"<image>{question}"}
    return {"messages": [asked, {"role": "assistant", "content": answer}], "images": [picture]}


def save_random_base(folder: Path, texts: list[str]) -> None:
    """Saves a Gemma 3 of every mechanism, a few megabytes large, with a tokenizer and the processor that it needs."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    save_tokenizer(folder, texts)
    text = {"vocab_size": 512, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "head_dim": 32}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 1, "query_pre_attn_scalar": 32, "sliding_window": 64}
    text |= {"layer_types": ["sliding_attention", "full_attention"] * 2, "max_position_embeddings": 4096}
    text |= {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    vision = {"hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 3, "num_attention_heads": 4}
    vision |= {"image_size": 96, "patch_size": 8, "vision_use_head": False}
    tokens = {"boi_token_index": 6, "eoi_token_index": 7, "image_token_index": len(SPECIAL)}
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=16, **tokens)
    model = Gemma3ForConditionalGeneration(config)
    model.model.multi_modal_projector.mm_input_projection_weight.data.normal_()  # transformers begins with zeros
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
