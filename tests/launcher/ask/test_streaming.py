"""However an answer is cut into pieces, what is shown is the whole answer without its end mark, and obeys nothing."""

from __future__ import annotations

from itertools import pairwise

from gemfleet.cluster.redaction import printable
from gemfleet.launcher.ask.streaming import tidied
from hypothesis import given
from hypothesis import strategies as st

END = "[end]"
texts = st.text(alphabet=" \nab[end]\x1b", max_size=40)


@given(texts, st.lists(st.integers(0, 40), max_size=6), st.sampled_from(["", END]))
def test_the_pieces_are_the_tidy_answer(text: str, cuts: list[int], end: str) -> None:
    whole = text + end
    places = [0, *sorted(cuts), len(whole)]
    pieces = [whole[a:b] for a, b in pairwise(places)]
    shown = list(tidied(pieces, end))
    assert "".join(shown) == printable(whole.strip().removesuffix(end).strip())
    assert all(shown)


def test_a_piece_is_shown_as_soon_as_it_cannot_be_the_end() -> None:
    said = iter(["Lis", "bon", " [e", "dge"])
    shown = tidied(said, END)
    assert next(shown) == "Lis"
    assert next(said) == "bon"  # no more than one piece was taken
    assert next(shown) == " [edge"
