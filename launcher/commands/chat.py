"""`gemfleet chat`"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import typer

from .asking import Address, Asked, Cluster, Greedy, Model, MostTokens, Seed, Step, opened

if TYPE_CHECKING:
    from gemfleet.launcher.ask.answerer import Answers, Sampling

HELP = """\
/base         the untrained base answers the last question, too
/reset        forget what was said
/system TEXT  what the model is told first; without TEXT, nothing
/help         these lines
/exit         end, as Ctrl-D does; Ctrl-C ends an answer"""


def chat(
    run: Asked,
    step: Step = None,
    model: Model = None,
    cluster: Cluster = False,
    address: Address = None,
    greedy: Greedy = False,
    seed: Seed = None,
    max_new_tokens: MostTokens = 256,
) -> None:
    """Talk with a trained adapter. It knows what was said before.

    `/base` lets the untrained base answer the last question, too. `/help` lists the rest.

    Examples:

      gemfleet chat latest

      gemfleet chat demo-2026 --step best
    """
    from gemfleet.launcher.ask.answerer import Sampling

    from .tables import print_text

    with opened(run, step, model, cluster, address) as (name, answers):
        print_text(f"{name}. /help lists what else you can type; Ctrl-D ends.")
        if not answers.turns:
            print_text("It was trained on prompts without turns, so each question stands alone.")
        Chat(answers, Sampling(greedy, seed, max_new_tokens)).run()


class Chat:
    """A conversation in a terminal. texts: what user and assistant said in turn, the question first"""

    def __init__(self, answers: Answers, sampling: Sampling) -> None:
        self._answers, self._sampling = answers, sampling
        self._texts, self._system = list[str](), ""

    def run(self) -> None:
        """Read and answer lines until the end of the input, or `/exit`."""
        if sys.stdin.isatty():
            import readline  # noqa: F401  (lines can be edited, and earlier ones come back)
        while True:
            try:
                line = input("> ").strip()
            except EOFError:
                typer.echo("")
                return
            except KeyboardInterrupt:
                typer.echo("")
                continue
            if line == "/exit":
                return
            if line.startswith("/"):
                self._obey(*line.partition(" ")[::2])
            elif line:
                self._ask(line)

    def _ask(self, question: str) -> None:
        answer = self._say([*self._texts, question], base=False)
        if answer is not None:
            self._texts += [question, answer]

    def _say(self, texts: list[str], base: bool) -> str | None:
        """Print the answer to the last text, as far as nobody ends it. Returns it; None where there can be none."""
        from gemfleet.launcher.ask.questions import conversation
        from gemfleet.train.errors import UserError

        from .ask_print import stream

        said, pieces = list[str](), self._answers.answer(conversation(texts, self._system), self._sampling, base)
        try:
            stream(pieces, said)
        except KeyboardInterrupt:
            pieces.close()
            typer.echo(" …")
        except UserError as error:
            typer.echo(f"error: {error}")
            return None
        return "".join(said)

    def _obey(self, command: str, text: str) -> None:
        if command == "/base" and self._texts:
            self._say(self._texts[:-1], base=True)
        elif command == "/base":
            typer.echo("there is no question yet")
        elif command == "/reset":
            self._texts.clear()
            typer.echo("what was said is forgotten")
        elif command == "/system" and not self._answers.turns:
            typer.echo("its training had no turns, so there is no place for a system text")
        elif command == "/system":
            self._system = text.strip()
            typer.echo("the model is told this first" if self._system else "the model is told nothing first")
        else:
            typer.echo(HELP if command == "/help" else f"{command} is no command\n{HELP}")
