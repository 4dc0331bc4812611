"""Samples in mid-training: what the model writes by now, into samples.jsonl and to the trackers.

Rank 0 writes while the others wait at their next gradient, so it must have the whole model: the
recipe refuses other strategies. What is trained later does not change by it: texts draw from random
numbers of their own, and the model is left as it was. Knows nothing of how texts are made.
"""

import json
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel, TrainerCallback

from pressroom.files import lines_until, publish_text
from pressroom.nn import sampling
from pressroom.recipe import Recipe
from pressroom.run_dir import RunDir
from pressroom.samples import Request, Sampling, recipe_requests
from pressroom.tokenizer import ArticleTokenizer
from train.meter import Meter
from train.trackers import show_texts


class Samples(TrainerCallback):
    """Writes what the recipe's generation section asks for, every so many steps.

    Args:
        recipe: Says what and when.
        run: Where to.
        tokenizer: The base model's.
        told: The trackers' callbacks.
        meter: Whose clock does not count it.
    """

    def __init__(
        self,
        recipe: Recipe,
        run: RunDir,
        tokenizer: ArticleTokenizer,
        told: Sequence[TrainerCallback],
        meter: Meter,
    ) -> None:
        self._recipe, self._run, self._tokenizer = recipe, run, tokenizer
        self._told, self._meter = told, meter
        self._requests: list[Request] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Drop samples of steps that will be done again."""
        if state.is_world_process_zero:
            publish_text(self._run.samples, lines_until(self._run.samples, state.global_step))
            self._requests = recipe_requests(self._run.dataset, self._recipe)

    def on_log(
        self,
        args: Any,
        state: Any,
        control: Any,
        model: PreTrainedModel,
        logs: dict[str, float],
        **kwargs: Any,
    ) -> None:
        """Write, after a step whose figures are told."""
        due = state.global_step % self._recipe.tracking.sample_every_steps == 0
        if not (due and "loss" in logs and state.is_world_process_zero and self._requests):
            return
        texts = self._write(model)
        rows = [
            {"step": state.global_step, **vars(request), "tuned": text}
            for request, text in zip(self._requests, texts, strict=True)
        ]
        with self._run.samples.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        shown = [{"tuned": row["tuned"]["text"], "real": row["reference"] or ""} for row in rows]
        show_texts(self._told, state.global_step, shown)
        self._meter.marks.mark("evaluate", state.global_step)
        self._meter.start_clock()

    def _write(self, model: PreTrainedModel) -> list[dict[str, Any]]:
        generation = self._recipe.generation
        how = Sampling(
            max_new_tokens=generation.max_new_tokens,
            temperature=generation.temperature,
            seed=self._recipe.seed,
        )
        prompts = [request.prompt for request in self._requests]
        model.eval()
        try:
            return sampling.write(model, self._tokenizer, prompts, how)
        finally:
            model.train()
