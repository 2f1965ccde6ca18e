"""Writes the code of a model card, which loads the result and answers a prompt in the format of the training data."""

from __future__ import annotations

import json

from gemfleet.launcher.result.public_names import DEMO_ORIGIN, base_reference, is_hub_id, is_local

ABOUT_A_PICTURE = "What does the picture show?"
QUESTION = "What can you tell me about the sea?"
FORMATS = {
    "chat": "Trained on chats, which the tokenizer's chat template writes.",
    "messages": "Trained on chats in Gemma's turns, which the tokenizer's chat template writes: "
    "`<start_of_turn>user\\n…<end_of_turn>\\n<start_of_turn>model\\n`. An answer ends with `<end_of_turn>`.",
    "prompt_completion": "Trained on prompts and completions with nothing between them, after `<bos>`: "
    "give the prompt as in the data, to its last space or line break.",
    "text": "Trained on whole texts after `<bos>`: give the beginning of one.",
}


def usage(base: str, row_format: str, merged: bool, ending: str = "", sees: bool = False) -> str:
    """Code to run in the card's folder, and a note on the format of a prompt.

    base: what the person called the base model; row_format: of a prompt, a key of `FORMATS`; empty where it is unknown
    merged: whether the result has a merged model; ending: white space that ends the prompts of the data
    sees: whether it was trained with pictures
    """
    answering = _answering_about_a_picture() if sees else _answering(row_format, ending)
    code = [*_imports(base, merged), "", *_loading(base, merged), "", *answering]
    code = [_for_pictures(line) for line in code] if sees else code
    notes = [FORMATS[row_format]] if row_format in FORMATS else []
    if base == "demo" and not merged:
        notes.append(
            f"`adapter_config.json` names `{DEMO_ORIGIN}`, as other programs know it. The adapter was trained on a "
            "copy of it that had been rounded to 4 bits, which the code above loads: on the original weights, answers "
            "may differ."
        )
    if merged:
        notes.append("`merged/` holds the base with the adapter added; this folder itself is the adapter, for peft.")
    return "\n".join(["```python", *code, "```", *(f"\n{note}" for note in notes)])


def _for_pictures(line: str) -> str:
    """A line of the code for text, with the classes that see in place of theirs."""
    seeing = {"AutoModelForCausalLM": "AutoModelForImageTextToText", "AutoTokenizer": "AutoProcessor"}
    for text, ours in seeing.items():
        line = line.replace(text, ours)
    return line.replace("tokenizer", "processor")


def _answering_about_a_picture() -> list[str]:
    """Lines that ask about a picture by the processor's chat template, and print the answer."""
    return [
        'picture = "picture.png"  # a file or an address',
        f'content = [{{"type": "image", "url": picture}}, {{"type": "text", "text": "{ABOUT_A_PICTURE}"}}]',
        "inputs = tokenizer.apply_chat_template(",
        '    [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True,',
        '    return_tensors="pt",',
        ")",
        'inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)',
        "output = model.generate(**inputs, max_new_tokens=128)",
        'print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
    ]


def _imports(base: str, merged: bool) -> list[str]:
    if merged:
        return ["from transformers import AutoModelForCausalLM, AutoTokenizer"]
    ours = ["from gemfleet.train.data.demo import demo_model_folder  # pip install 'gemfleet[demo]'"] * (base == "demo")
    return [
        *ours,
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig",
    ]


def _loading(base: str, merged: bool) -> list[str]:
    if merged:
        return [
            'here = "./merged"  # in the folder of this card',
            "tokenizer = AutoTokenizer.from_pretrained(here)",
            'model = AutoModelForCausalLM.from_pretrained(here, dtype="auto")',
        ]
    return [
        'here = "."  # the folder of this card',
        *_base_lines(base),
        "tokenizer = AutoTokenizer.from_pretrained(here)",
        'model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")',
        "model.generation_config = GenerationConfig.from_pretrained(here)  # it knows where an answer ends",
        "model = PeftModel.from_pretrained(model, here)",
    ]


def _base_lines(base: str) -> list[str]:
    """Lines that set `base`: to a hub id, or to a folder, with a comment on how to get the model there."""
    if base == "demo":
        return ["base = demo_model_folder()"]
    reference = base_reference(base)
    if is_hub_id(reference):
        return [f'base = "{reference}"']
    if is_local(base):
        return [f'base = "{reference}"  # a folder: put the base model there, or write where it is']
    return [f"# {_fetching(base)}", 'base = "./base"']


def _fetching(address: str) -> str:
    """A comment on how to copy the model at an address into the folder `base`."""
    if not address.startswith("git+"):
        return f"first copy {address} into the folder base"
    url, _, branch = address.removeprefix("git+").partition("#")
    return f"first: git clone {f'--branch {branch} ' if branch else ''}{url} base"


def _answering(row_format: str, ending: str) -> list[str]:
    """Lines that tokenise a prompt as in training, by the chat template or after `<bos>`, and print an answer."""
    if row_format in ("chat", "messages"):
        asking = [
            f'messages = [{{"role": "user", "content": "{QUESTION}"}}]',
            "inputs = tokenizer.apply_chat_template(",
            '    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"',
            ")",
        ]
    else:
        asking = [
            f"prompt = tokenizer.bos_token + {json.dumps(QUESTION + ending)}",
            'inputs = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")',
        ]
    return [
        *asking,
        'output = model.generate(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], '
        "max_new_tokens=128)",
        'print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
    ]
