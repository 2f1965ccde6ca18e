"""Prints the description of a run's data on a terminal, or as plain lines where there is none."""

from __future__ import annotations

from collections.abc import Sequence

from gemfleet.launcher.data_view.pictures import MOST
from gemfleet.launcher.data_view.sentences import facts_of, left_out_lines, share
from gemfleet.launcher.data_view.spans import clipped
from gemfleet.launcher.data_view.view import DataView, Example, Lengths, SetView, Span
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from .tables import open_console, print_facts, print_table

SUPERVISED = "green underline"
MOST_CHARACTERS = 1_500  # of an example, unless it was asked for by its number
BAR = 40


def print_view(view: DataView) -> None:
    """Print the whole description."""
    console = open_console()
    print_facts(facts_of(view))
    if len(view.sets) > 1:
        _print_sets(view.sets)  # with an empty line before and behind it
    else:
        console.print()
    for found in view.sets:
        _print_left_out(found, len(view.sets) > 1, console)
    if view.lengths:
        _print_lengths(view.lengths, console)
    if view.examples:
        _print(Text(f"\n{legend(console)}"), console)
    for example in view.examples:
        print_example(example, MOST_CHARACTERS)


def print_example(example: Example, most: int | None = None) -> None:
    """Print a row's name, why it is left out, and its text. most: characters of it, None: all"""
    console = open_console()
    head = Text(f"\n{example.name}", style="bold")
    if example.spans:
        seen = f", {_pictures(len(example.pictures))}" if example.pictures else ""
        head.append(f"  {example.tokens:,} tokens, {example.supervised_tokens:,} supervised{seen}", style="not bold")
    _print(head, console)
    if example.left_out:
        _print(Text(f"left out: {example.left_out}", style="yellow"), console)
    if example.spans:
        _print(marked(example.spans if most is None else clipped(example.spans, most), console), console, indent=2)


def _pictures(shown: int) -> str:
    """How many pictures an example has, of which only the first are known."""
    return "1 picture" if shown == 1 else f"{shown} pictures" + (" or more" if shown == MOST else "")


def legend(console: Console) -> str:
    """How supervised text is marked on this console, in a sentence."""
    how = "green and underlined" if _has_colours(console) else "in {} {}".format(*brackets(console))
    return f"The loss is computed on the text that is {how}."


def marked(spans: Sequence[Span], console: Console) -> Text:
    """The text of an example with its supervised parts marked: in colour with a line below them, else in brackets."""
    text, (opening, closing) = Text(), brackets(console)
    for span in spans:
        if span.supervised and _has_colours(console):
            text.append(span.text, style=SUPERVISED)
        else:
            text.append(f"{opening}{span.text}{closing}" if span.supervised else span.text)
    text.rstrip()
    return text


def brackets(console: Console) -> tuple[str, str]:
    """The marks around supervised text where there are no colours."""
    return ("⟦", "⟧") if _is_unicode(console) else ("[[", "]]")


def _print_sets(sets: Sequence[SetView]) -> None:
    names = ("set", "use", "rows", "used", "left out", "in an epoch", "tokens", "supervised")
    rows = []
    for found in sets:
        left = sum(reason.count for reason in found.left_out)
        numbers = [f"{number:,}" for number in (found.rows, found.examples + found.held_out, left)]
        numbers += [f"{found.epoch_examples:,}" if found.use == "train" else "", f"{found.tokens:,}"]
        rows.append([Text(found.name), found.use, *numbers, share(found.supervised_tokens, found.tokens)])
    print_table(names, rows)


def _print_left_out(found: SetView, named: bool, console: Console) -> None:
    if found.left_out:
        _print(Text(f"Left out of {found.name}" if named else "Left out", style="bold"), console)
        for line in left_out_lines(found):
            _print(Text(line), console, indent=2)
        console.print()


def _print_lengths(lengths: Lengths, console: Console) -> None:
    said = f"{lengths.shortest:,} to {lengths.longest:,}, half of them at most {lengths.median:,}"
    _print(Text(f"Tokens of an example: {said}", style="bold"), console)
    most, total = max(bucket.count for bucket in lengths.histogram), sum(bucket.count for bucket in lengths.histogram)
    dash, block = ("\N{EN DASH}", "█") if _is_unicode(console) else ("-", "#")
    names = [f"{bucket.shortest:,}{dash}{bucket.longest:,}" for bucket in lengths.histogram]
    for name, bucket in zip(names, lengths.histogram, strict=True):
        facts = f"{name:>{max(map(len, names))}} {bucket.count:>{len(f'{most:,}')},} {share(bucket.count, total):>5} "
        cells = max(1, round(BAR * bucket.count / most)) if bucket.count else 0
        _print(Text.assemble(facts, (block * cells, "cyan")), console, indent=2)


def _print(text: Text, console: Console, indent: int = 0) -> None:
    """Print a text. On a terminal, its lines break between words; elsewhere they are as long as they are."""
    if console.is_terminal:
        console.print(Padding(text, (0, 0, 0, indent), expand=False))
        return
    for line in text.plain.split("\n"):
        console.print(f"{' ' * indent}{line}".rstrip(), markup=False, emoji=False, soft_wrap=True)


def _has_colours(console: Console) -> bool:
    return console.is_terminal and not console.no_color


def _is_unicode(console: Console) -> bool:
    return console.encoding.lower().startswith("utf")
