"""`gemfleet ask` answers as the trained adapter and as the untrained base, from a run or from a stranger's clone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from gemfleet.cluster.errors import ResourcesUnavailable
from gemfleet.cluster.inventory import Node
from gemfleet.cluster.redaction import printable
from gemfleet.cluster.registry.run_registry import RunState
from gemfleet.launcher.ask.answerer import Sampling
from gemfleet.launcher.ask.on_cluster import choose_node
from gemfleet.launcher.cli import app, main
from gemfleet.launcher.commands.asking import opened
from gemfleet.launcher.commands.chat import Chat
from gemfleet.launcher.result.again import keep
from gemfleet.launcher.runs.registry import registry_of
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.errors import UserError
from gemfleet.train.model.predict import Predictor, Question
from support.tiny_result import tiny_base, tiny_result
from support.tiny_run import ends, gemfleet, local_ray
from typer.testing import CliRunner

TEXT = "what is the cat"
VIEW: dict[str, Any] = {"model": "m", "lengths": None, "epoch": None, "notes": []}


def view(row_format: str, *spans: tuple[str, bool]) -> str:
    """A run's description of its data, with one example."""
    one = {"name": "rows", "path": "rows", "use": "train", "format": row_format, "rows": 1, "examples": 1}
    one |= {"tokens": 9, "supervised_tokens": 4, "left_out": [], "unused": []}
    shown = [{"text": text, "supervised": learned} for text, learned in spans]
    example = {"name": "row 1", "tokens": 9, "supervised_tokens": 4, "spans": shown}
    return json.dumps({**VIEW, "sets": [one], "examples": [example]})


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with one run, `one-1`, which has published its adapter of prompts that end in a line break."""
    home = tmp_path / "home"
    monkeypatch.setenv("GEMFLEET_HOME", str(home))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # as `ask` sets it
    model = tiny_base(tmp_path / "model")
    registry = registry_of(home)
    registry.create_run("one-1", "one", "{}")
    registry.transition("one-1", RunState.INTERRUPTED)
    folder = home / "runs" / "one-1"
    folder.mkdir(parents=True)
    (folder / "data.json").write_text(view("prompt_completion", ("<bos>a cat?\n", False), ("yes<eos>", True)))
    tiny_result(folder, model, str(model), "prompt_completion")
    (folder / "config.resolved.yaml").write_text(f"train: {{model: {model}, data: {{train: rows.jsonl}}}}\n")
    return home


def said(*arguments: str, stdin: str = "") -> list[dict[str, str]]:
    result = CliRunner().invoke(app, ["ask", *arguments, "--json"], input=stdin, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    monkeypatch.setattr("sys.argv", ["gemfleet", "ask", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    return capsys.readouterr().err


def predicted(model: Path, adapter: Path | None, prompt: str) -> str:
    """What the predictions of a run would say, cleaned for a terminal, to a prompt with its control tokens."""
    config = TrainConfig.model_validate({"model": str(model), "data": {"train": "rows.jsonl"}, "precision": "fp32"})
    predictor = Predictor(model, adapter, config)
    ids = predictor.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    return printable(predictor.answer([Question(tuple(ids), ())], 12)[0].prediction)


def test_a_run_and_its_base_answer_as_predictions_do(home: Path, tmp_path: Path) -> None:
    (found,) = said("latest", TEXT, "--base", "--max-new-tokens", "12")
    model, prompt = tmp_path / "model", f"<bos>{TEXT}\n"
    assert found["model"] == "one-1, step 1"
    assert found["answer"] == predicted(model, home / "runs/one-1/output", prompt)
    assert found["base_answer"] == predicted(model, None, prompt) != found["answer"]
    assert said("one", TEXT + "\n", "--max-new-tokens", "12")[0]["answer"] == found["answer"]


@pytest.mark.parametrize("turns", [False, True])
def test_a_strangers_clone_knows_how_a_prompt_is_written(home: Path, tmp_path: Path, turns: bool) -> None:
    """By the card. A text that holds Gemma's turns is asked in turns."""
    output, model, clone = home / "runs/one-1/output", tmp_path / "model", tmp_path / "clone"
    if turns:
        text = "<start_of_turn>user\na<end_of_turn>\n<start_of_turn>model\nb<end_of_turn><eos>"
        (tmp_path / "texts").mkdir()
        (tmp_path / "texts" / "data.json").write_text(view("text", ("<bos>", False), (text, True)))
        output = tiny_result(tmp_path / "texts", model, str(model), "text")
    shutil.copytree(output, clone)
    shutil.copytree(model, clone / "model")  # where adapter_config.json says
    (found,) = said(str(clone), TEXT, "--max-new-tokens", "12")
    assert ('sea?\\n"' in (output / "README.md").read_text()) != turns  # the card's code ends its prompt so, too
    asked = f"<start_of_turn>user\n{TEXT}<end_of_turn>\n<start_of_turn>model\n" if turns else f"{TEXT}\n"
    assert found == {"model": "clone", "question": TEXT, "answer": predicted(model, output, f"<bos>{asked}")}


def test_questions_come_from_files_and_standard_input(home: Path, tmp_path: Path) -> None:
    rows: list[Any] = ["a cat", {"prompt": "b cat\n"}, {"question": "c cat"}]
    rows += [{"messages": [{"role": "user", "content": "d cat"}, {"role": "assistant", "content": "no"}]}]
    (tmp_path / "q.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
    found = said("latest", "-", "--file", str(tmp_path / "q.jsonl"), "--max-new-tokens", "2", stdin="e cat\n\nf cat")
    assert [row["question"].strip() for row in found] == [f"{letter} cat" for letter in "abcdef"]


def test_sampling_is_the_models_own_and_a_seed_repeats_it(home: Path) -> None:
    path = home / "runs/one-1/output/generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "do_sample": True, "top_k": 200, "temperature": 1.5}))
    answers = [said("latest", TEXT, "--seed", seed, "--max-new-tokens", "12")[0]["answer"] for seed in "112"]
    assert answers[0] == answers[1] != answers[2]
    greedy = [said("latest", TEXT, "--greedy", "--seed", seed, "--max-new-tokens", "12")[0]["answer"] for seed in "12"]
    assert greedy[0] == greedy[1]


def test_what_cannot_be_asked_is_said_in_a_sentence(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def error(*arguments: str) -> str:
        return refused(monkeypatch, capsys, *arguments)

    assert "there is no question" in error("latest")
    assert "not UTF-8 text" in error("latest", "bad \udcff byte")
    assert "tokens, but the model takes" in error("latest", "cat " * 5000)
    for row in ("5", '["prompt"]', '{"messages": 5}'):
        (tmp_path / "q.jsonl").write_text(row)
        assert "line 1 has no question" in error("latest", "--file", str(tmp_path / "q.jsonl"))
    shutil.copytree(home / "runs/one-1/output", tmp_path / "pointer")
    (tmp_path / "pointer/adapter_model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "is a pointer of git-lfs" in error(str(tmp_path / "pointer"), TEXT)
    assert "no run" in error("two", TEXT)
    assert "give a number of steps, `best` or `last`" in error("latest", TEXT, "--step", "first")
    assert "there is no checkpoint that verifies" in error("latest", TEXT, "--step", "last")
    assert "neither the folder of a run nor an adapter" in error(str(tmp_path / "model"), TEXT)
    other = tmp_path / "other"
    from support.tiny_model import save_tiny_gemma3
    from support.tiny_tokenizer import tiny_tokenizer

    save_tiny_gemma3(other, layers=2)
    tiny_tokenizer(other)
    assert "does not fit the base" in error("latest", TEXT, "--model", str(other))
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=1000, total=1000))
    assert "GiB that are free here" in error("latest", TEXT)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=2**40, total=2**40))
    shutil.rmtree(tmp_path / "model")
    message = error("latest", TEXT)
    assert "the base model of one-1, step 1 is not here" in message
    assert "--model" in message


def test_the_base_of_a_remote_source_is_the_copy_that_the_run_had(home: Path, tmp_path: Path) -> None:
    folder = home / "runs" / "one-1"
    text = "train: {model: 'git+https://host/m.git', data: {train: rows.jsonl}}\n"
    (folder / "config.resolved.yaml").write_text(text)
    keep(folder, {"model": str(tmp_path / "model")})
    (found,) = said("latest", TEXT, "--max-new-tokens", "2")
    assert found["answer"]


def test_a_published_step_is_not_the_last_of_the_history(home: Path) -> None:
    state = home / "runs/one-1/output/trainer_state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "global_step": 9}))
    assert said("latest", TEXT, "--max-new-tokens", "1")[0]["model"] == "one-1, step 1"


def test_a_chat_forgets_a_question_that_cannot_be_asked(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = iter(["bad \udcff byte", "a cat"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines, "/exit"))
    with opened("latest", None, None, False, None) as (_, answers):
        chat = Chat(answers, Sampling(True, None, 2))
        chat.run()
    assert "error: the question is not UTF-8 text" in capsys.readouterr().out
    assert chat._texts[0] == "a cat"


def test_closing_an_answer_ends_its_generation(home: Path, tmp_path: Path) -> None:
    import threading

    from gemfleet.launcher.ask.answerer import Answerer, Sampling
    from gemfleet.launcher.ask.questions import conversation
    from gemfleet.launcher.ask.subject import open_subject

    with open_subject(home / "runs" / "one-1", None, None) as subject:
        answerer = Answerer(subject)
    answerer._settings.eos_token_id = None
    before = threading.active_count()
    pieces = answerer.answer(conversation([TEXT]), Sampling(max_new_tokens=100_000))
    next(pieces)
    pieces.close()
    assert threading.active_count() == before
    assert torch.is_grad_enabled()


def test_an_answering_node_has_a_free_gpu_else_a_cpu() -> None:
    def node(name: str, cpus: float, gpus: float, **more: Any) -> Node:
        return Node(name, name, name, False, 8, 2, cpus, gpus, 0, 0, **more)

    busy, slow, fast = node("busy", 0.5, 0), node("slow", 8, 0), node("fast", 0, 1)
    assert [choose_node(nodes).id for nodes in ([busy, slow, fast], [slow, busy])] == ["fast", "slow"]
    with pytest.raises(ResourcesUnavailable, match="no node has a free GPU or CPU"):
        choose_node([busy, node("going", 8, 2, draining=True)])


@pytest.mark.slow
def test_the_cluster_answers_as_this_process_does(home: Path, tmp_path: Path) -> None:
    """Through the command; and in an actor whose answer is closed, and which then answers the next question."""
    import ray
    from gemfleet.launcher.ask.answerer import Sampling
    from gemfleet.launcher.ask.on_cluster import AnsweringNode, files_of, loaded
    from gemfleet.launcher.ask.questions import conversation
    from gemfleet.launcher.ask.subject import open_subject

    options = ("latest", TEXT, "--base", "--json", "--max-new-tokens", "12")
    (here,) = said(*options[:3], *options[4:])
    with local_ray(2) as address:
        output = ends(gemfleet(tmp_path, home, "ask", *options, "--address", address))
        assert json.loads(output.splitlines()[-1]) == here
        with open_subject(home / "runs" / "one-1", None, None) as subject:
            files = files_of(subject.adapter)
        actor = ray.remote(AnsweringNode).options(max_concurrency=2).remote()
        with pytest.raises(UserError, match="does not fit the base"):
            loaded(actor, subject, {}, on_gpu=False)
        answers = loaded(actor, subject, files, on_gpu=False)
        pieces = answers.answer(conversation([TEXT]), Sampling(max_new_tokens=100_000))
        first = next(pieces)
        pieces.close()
        assert "".join(answers.answer(conversation([TEXT]), Sampling(max_new_tokens=12))) == here["answer"]
        assert here["answer"].startswith(first)
