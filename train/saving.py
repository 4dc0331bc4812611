"""The trainer's part that faults meet: saving, steps that are not numbers, ending when asked.

Knows nothing of the recipe's translation, which is `train/trainer.py`'s.
"""

import math
import time
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerControl

from pressroom.console import UserError, log
from pressroom.recipe import Recipe
from pressroom.run_dir import RunDir
from train import checkpoint
from train.checkpoint import Checkpoint
from train.meter import Meter
from train.preempt import Preemption
from train.watchdog import Watchdog

SKIPPED_IN_A_ROW = 5


class SavingTrainer(Trainer):
    """Saves atomically, adapters and state alone; skips steps; leaves an evaluation when asked."""

    recipe: Recipe
    run: RunDir
    meter: Meter
    preemption: Preemption
    watchdog: Watchdog
    control: TrainerControl
    lowest_eval_loss = math.inf
    skipped = 0
    """Steps skipped up to the last one, in a row."""
    _evaluated: tuple[int, float] = (0, math.nan)
    """The last evaluation: its step and loss."""

    def go_on_from(self, found: Checkpoint | None, lowest: float) -> None:
        """Train, from a checkpoint where there is one.

        Args:
            found: The checkpoint.
            lowest: The lowest held-out loss so far.
        """
        self.lowest_eval_loss = lowest
        every = self.recipe.evaluation.every_steps
        if found and every and found.manifest.eval_loss is None:
            # It was left when the run was asked to end, or killed before it began.
            step = found.manifest.step
            self.args.eval_on_start = step % every == 0 or step == self.args.max_steps
        with self.watchdog.watching():
            self.train(resume_from_checkpoint=str(found.path) if found else None)

    def leaves_evaluation(self) -> bool:
        """Whether to leave an evaluation now, save and end; every rank asks after each batch."""
        self.watchdog.alive()
        if not self.preemption.agreed():
            return False
        self.meter.marks.mark("evaluate", self.state.global_step)
        self.control.should_evaluate = False
        self.control.should_save = self.control.should_training_stop = True
        return True

    def evaluated(self, loss: float) -> None:
        """Have a checkpoint of the lowest held-out loss so far."""
        self._evaluated = (self.state.global_step, loss)
        if math.isfinite(loss) and self.args.should_save:
            checkpoint.record_eval_loss(self.run, self.state.global_step, loss)
        if loss < self.lowest_eval_loss:
            self.lowest_eval_loss = loss
            self.control.should_save |= self.recipe.checkpoint.keep_best

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        """Leave the optimizer nothing to do in a step that is to be skipped."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if self.recipe.optimizer.on_nan == "stop":
            return norm
        # fp16's gradient scaler tries large scales: it skips the steps that overflow by itself.
        watched = float(self._tr_loss) if self.args.fp16 else float(self._tr_loss) + float(norm)
        bad = torch.tensor(int(not math.isfinite(watched)), device=self.args.device)
        if not int(self.accelerator.reduce(bad, "sum")):
            self.skipped = 0
            return norm
        model.zero_grad(set_to_none=True)
        self._tr_loss.zero_()  # or the sum of later losses is no number either
        self.skipped += 1
        step = self.state.global_step + 1
        if self.is_world_process_zero():
            log.warning("step %d skipped: its loss or gradient is not a number", step)
            if self.skipped > SKIPPED_IN_A_ROW:
                raise UserError(
                    f"{self.skipped} steps up to step {step} were skipped one after the other, "
                    "for their loss or gradient was not a number: lower optimizer.learning_rate, "
                    "or look at the data of these steps"
                )
        return norm

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Save, all ranks; not while steps are skipped, for nobody knows what is wrong."""
        if self.skipped:
            return
        start = time.perf_counter()
        step, keep = self.state.global_step, self.recipe.checkpoint
        evaluated_at, loss = self._evaluated
        with self.watchdog.off(), checkpoint.writing(self.run, f"the checkpoint of step {step}"):
            # Not TRL's, which adds a model card of its own.
            Trainer._save_checkpoint(self, model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                manifest = checkpoint.Manifest(
                    step=step,
                    world_size=self.args.world_size,
                    strategy=checkpoint.strategy_in_force(
                        self.recipe.parallel.strategy, self.args.world_size
                    ),
                    eval_loss=loss if evaluated_at == step and math.isfinite(loss) else None,
                )
                checkpoint.publish(
                    self.run, manifest, keep_last=keep.keep_last, keep_best=keep.keep_best
                )
            self.accelerator.wait_for_everyone()
        self.meter.save_seconds.append(time.perf_counter() - start)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the adapters; every rank calls it.

        Under FSDP the library would gather the whole base first, to write the adapters of it.
        """
        if not self.is_fsdp_enabled:
            super().save_model(output_dir, _internal_call)
            return
        trained = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        # Offloaded, they would travel by gloo, which in torch 2.13 can crash on many such gathers.
        whole = {n: p.to(self.args.device).full_tensor().cpu() for n, p in trained.items()}
        self._save(output_dir, whole)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        # The adapters alone: no tokenizer, no pickle of the arguments, no empty model card.
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            self.accelerator.unwrap_model(self.model).save_pretrained(folder, state_dict=state_dict)
            (folder / "README.md").unlink(missing_ok=True)
