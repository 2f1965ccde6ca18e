"""Progress for people: few plain lines in a log, a bar on a terminal, and the same facts in both."""

from __future__ import annotations

import io

from gemfleet.launcher.display import LiveDisplay, PlainDisplay, clock_time, open_display, run_facts, training_facts
from rich.console import Console

STEP = {"epoch": 0.5, "epochs": 2.0, "loss": 1.8341, "tokens_per_second": 1512.4, "seconds_left": 185.0}


def test_plain_lines_come_every_ten_seconds_and_at_the_end() -> None:
    now = [0.0]
    output = io.StringIO()
    display = PlainDisplay(output, clock=lambda: now[0])
    display.phase("training")
    for step in range(1, 41):
        now[0] += 1.0
        display.advance(step, 40, "facts")
    display.advance(40, 40, "facts")
    display.close()
    assert output.getvalue().splitlines() == ["training", *(f"training: {n}/40  facts" for n in (10, 20, 30, 40))]


def test_a_pipe_gets_plain_lines_and_a_terminal_gets_a_bar() -> None:
    assert isinstance(open_display(io.StringIO()), PlainDisplay)
    output = io.StringIO()
    display = LiveDisplay(Console(file=output, force_terminal=True, width=120))
    display.phase("training")
    display.advance(3, 10, "loss 1.5")
    display.note("checkpoint-3 is on the head [verified]")
    display.phase("publishing")
    display.close()
    text = output.getvalue()
    assert "10/10" in text
    assert "checkpoint-3 is on the head [verified]" in text
    assert "publishing" in text


def test_facts_name_epoch_losses_speed_and_time_left() -> None:
    assert training_facts(STEP, {"eval_loss": 1.9}) == "epoch 0.50/2  loss 1.834  eval 1.900  1,512 tokens/s  ETA 3:05"
    assert training_facts(None, None) == ""
    assert clock_time(3723) == "1:02:03"


def test_the_last_line_of_a_log_is_of_the_whole_run() -> None:
    output = io.StringIO()
    display = PlainDisplay(output)
    display.phase("training")
    display.advance(40, 40, "scoring and saving")
    facts = run_facts({"loss": 1.5, "tokens_per_second": 1512.4}, {"eval_loss": 1.25})
    display.advance(40, 40, facts)
    said = "training: 40/40  loss 1.500 on average  eval 1.250  1,512 tokens/s at the median"
    assert output.getvalue().splitlines()[-1] == said
    assert run_facts({}, None) == ""
