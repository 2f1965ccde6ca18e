"""`gemfleet ask`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .asking import Address, Asked, Cluster, Greedy, Model, MostTokens, Seed, Step, opened
from .options import Json

if TYPE_CHECKING:
    from gemfleet.train.data.shapes.conversation import Message


def ask(
    run: Asked,
    questions: Annotated[
        list[str] | None, typer.Argument(metavar="QUESTION…", help="`-`: a line of standard input each.")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", help="Questions: rows of `.jsonl` with `prompt`, `question` or `messages`, or lines."),
    ] = None,
    image: Annotated[
        list[Path] | None,
        typer.Option("--image", metavar="FILE", help="A picture to ask about, of a base that sees; may be repeated."),
    ] = None,
    base: Annotated[bool, typer.Option("--base", help="Show what the untrained base answers, too.")] = False,
    step: Step = None,
    model: Model = None,
    cluster: Cluster = False,
    address: Address = None,
    greedy: Greedy = False,
    seed: Seed = None,
    max_new_tokens: MostTokens = 256,
    as_json: Json = False,
) -> None:
    """Ask a trained adapter one or several questions, in the format of its training.

    The model answers in this process, on the CPU, unless `--cluster` is given. Answers appear as they are made. With
    `--json` each is a line.

    Examples:

      gemfleet ask latest "What is the capital of Portugal?"

      gemfleet ask latest --base --file questions.jsonl

      gemfleet ask latest "Which bar is the highest?" --image chart.png

      gemfleet ask ./a-cloned-result "Who are you?" --model google/gemma-3-1b-it
    """
    asked = _questions(questions or [], file, image or [])
    from gemfleet.launcher.run.signals import EXIT_CODE

    from .ask_print import Printer

    with opened(run, step, model, cluster, address, bool(image)) as (name, answers):
        from gemfleet.launcher.ask.answerer import Sampling

        printer = Printer(answers, Sampling(greedy, seed, max_new_tokens), name, base)
        try:
            for messages in asked:
                if as_json:
                    printer.json(messages)
                else:
                    printer.show(messages, titled=len(asked) > 1)
        except KeyboardInterrupt:
            raise typer.Exit(EXIT_CODE) from None


def _questions(given: list[str], file: Path | None, images: list[Path]) -> list[list[Message]]:
    import sys

    from gemfleet.launcher.ask.questions import about, conversation, questions_of, read_questions
    from gemfleet.train.errors import UserError

    found = read_questions(file) if file else []
    for text in given:
        if text == "-":  # as in arguments, what is no UTF-8 is kept, and refused in a sentence where it is asked
            found += questions_of(sys.stdin.buffer.read().decode(errors="surrogateescape").split("\n"))
        elif text.strip():
            found.append(conversation([text]))
    if not found:
        raise UserError('there is no question; give one, as in `gemfleet ask latest "What is AI?"`, or --file, or `-`')
    if not images:
        return found
    from gemfleet.launcher.ask.seeing import read_pictures

    pictures = read_pictures(images)
    return [about(pictures, messages) for messages in found]
