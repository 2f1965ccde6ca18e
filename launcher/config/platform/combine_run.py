"""Fields that say what a run does: log, score, hold out data, predict, or train nothing."""

from __future__ import annotations

from .draft import Draft
from .keys.key import P
from .request import Request


def combine_run(request: Request, draft: Draft) -> None:
    strategy, steps = P + "logging_strategy", P + "logging_steps"
    interval = request.get(steps)
    log = {"epoch": "epoch", "no": "never", "steps": interval if interval > 0 else "epoch"}[request.get(strategy)]
    draft.put("train.logging.every", log, strategy, steps)
    evaluation, eval_steps = P + "evaluation_strategy", P + "eval_steps"
    every = request.values.get(eval_steps) or (interval if interval > 0 else None)
    if request.get(evaluation) == "steps" and every is None:
        draft.problems.append(f"{eval_steps}: missing; {evaluation} is `steps`, so give how many steps lie between two")
    when = {"epoch": "epoch", "no": "never", "steps": every or "epoch"}[request.get(evaluation)]
    draft.put("train.evaluation.every", when, evaluation, eval_steps)
    _held_out(request, draft)
    _without_training(request, draft)
    if P + "log" in request.said_nothing or request.has(P + "log"):
        draft.put("output.tensorboard", bool(request.values.get(P + "log", False)), P + "log")


def _held_out(request: Request, draft: Draft) -> None:
    evaluation, predict = P + "evaluation_strategy", P + "do_predict"
    if request.get(evaluation) == "no" and not request.get(predict):
        draft.put("train.data.eval_fraction", 0.0, evaluation)
        return
    draft.put("train.data.eval_fraction", 0.1, evaluation, predict)
    draft.notes.append("the request names no evaluation set; a seeded tenth of the data is held out and not trained on")
    if request.get(predict):
        batch = request.values.get(P + "per_device_eval_batch_size", 4)
        draft.put("predict.batch", batch, predict, P + "per_device_eval_batch_size")


def _without_training(request: Request, draft: Draft) -> None:
    train, evaluation, predict = P + "do_train", P + "evaluation_strategy", P + "do_predict"
    if request.get(train):
        return
    draft.put("train.max_steps", 0, train)
    if request.get(evaluation) == "no" and not request.get(predict):
        draft.problems.append(
            f"{train}: found false while {evaluation} is `no` and {predict} is false; set one of them"
        )
    if request.values.get("peft.merge_adapter"):
        draft.problems.append(f"peft.merge_adapter: found true while {train} is false; there is no adapter to merge")
