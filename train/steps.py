"""What runs in every micro-step and step: rows in, loss, figures out.

The GPU is waited for once a step, when its figures are fetched; a micro-step only hands it work.
So nothing here asks for a value or copies with waiting, and what the libraries would ask for is
made of what the host knows: which labels count, where articles begin. Knows nothing of saving.
"""

import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from accelerate import DistributedType
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerControl

from pressroom.dataset import IGNORE
from pressroom.recipe import Recipe
from train.articles import Articles
from train.attention import backend_of
from train.data import RankBatches
from train.meter import Meter

Batch = dict[str, Any]


class Collator:
    """Rows -> the tensors of a micro-batch, on the host.

    Args:
        collate: TRL's, which lays rows end to end and restarts positions at every article.
    """

    def __init__(self, collate: Any) -> None:
        self._collate = collate

    def __call__(self, rows: list[dict[str, Any]]) -> Batch:
        """Say what is trained by its place: on the GPU, finding out would wait for it.

        Returns:
            `input_ids` [1, T]; `trained` [N], the places before trained tokens, and `targets`
            [N], those tokens; `lengths`, of the articles; and what attention needs.
        """
        batch: Batch = self._collate(rows)
        next_labels = batch.pop("labels")[0, 1:]
        batch["trained"] = (next_labels != IGNORE).nonzero()[:, 0]
        batch["targets"] = next_labels[batch["trained"]]
        batch["lengths"] = batch["cu_seq_lens_q"].diff().tolist()
        return batch


def attending(inputs: Batch, attention: str) -> Batch:
    """What a model needs so that articles see themselves only.

    transformers looks for articles in position_ids, and waits for the GPU to say whether there is
    more than one. So it gets a mask from here: for SDPA the real one, [1, 1, T, T]; for
    `train/attention.py` an empty one, and beside it where the articles are.
    """
    inputs = dict(inputs)
    lengths, numbers = inputs.pop("lengths"), inputs.pop("seq_idx")
    if backend := backend_of(attention):
        articles = Articles(lengths, inputs["cu_seq_lens_q"], numbers[0], backend)
        empty = numbers.new_empty((1, 1, 0, 0))
        return {**inputs, "attention_mask": empty, "articles": articles}
    if attention != "sdpa":
        return inputs
    same = numbers[:, None, :, None] == numbers[:, None, None, :]
    return {**inputs, "attention_mask": same.tril_()}


class Steps(Trainer):
    """The training half of a trainer: `RecipeTrainer` saves and evaluates."""

    recipe: Recipe
    meter: Meter
    control: TrainerControl
    skipped: int
    _counts: torch.Tensor
    _globalstep_last_logged: int

    def get_train_dataloader(self) -> DataLoader:
        """This rank's micro-batches of the whole run: what accelerate's would repeat or drop."""
        rows = self.train_dataset
        batches = RankBatches(
            self.recipe, len(rows), rank=self.args.process_index, world_size=self.args.world_size
        )
        return DataLoader(
            rows,
            batch_sampler=batches,
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
        )

    def _run_epoch(self, **arguments: Any) -> None:
        """Train, unless it is known already that training is over."""
        if not self.control.should_training_stop:
            super()._run_epoch(**arguments)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], torch.Tensor]:
        """The micro-batches of a step, and its trained tokens over all ranks."""
        start = time.perf_counter()
        batches = list(islice(epoch_iterator, num_batches))
        self.meter.data_wait_seconds = time.perf_counter() - start
        lengths = [n for batch in batches for n in batch["lengths"]]
        trained = sum(len(batch["targets"]) for batch in batches)
        mine = torch.tensor([sum(lengths), trained, sum(n * n for n in lengths)]).double()
        self._counts = self.accelerator.reduce(mine.to(device, non_blocking=True), "sum")
        return batches, self._counts[1]

    def _prepare_input(self, data: Any) -> Any:
        """Move a batch without waiting: the loader has pinned it."""
        if isinstance(data, dict):
            return {name: self._prepare_input(value) for name, value in data.items()}
        if isinstance(data, torch.Tensor):
            return data.to(self.args.device, non_blocking=True)
        return data

    def training_step(
        self,
        model: torch.nn.Module,
        inputs: Batch,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Forward and backward of a micro-batch, and nothing else.

        The Trainer's sets the mode of thousands of modules each time, which is set already.
        """
        inputs = self._prepare_inputs(inputs)
        loss = self.compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        zero = self.accelerator.distributed_type == DistributedType.DEEPSPEED
        self.accelerator.backward(loss, **({"scale_wrt_gas": False} if zero else {}))
        return loss.detach()

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Sum of NLL: by the trained tokens of the whole step on all ranks, or as it is.

        TRL's gathers entropy and accuracy over ranks, and fetches them in every micro-step.
        """
        scale = None
        if num_items_in_batch is not None:
            # DDP averages gradients over ranks, each of which has divided by the tokens of all.
            scale = (self.accelerator.num_processes / num_items_in_batch.clamp(min=1)).float()
        attention = self.model.config._attn_implementation
        outputs = model(**attending(inputs, attention), scale=scale, use_cache=False)
        return outputs.loss

    def floating_point_ops(self, inputs: Batch) -> int:
        """Not counted here, parameter by parameter in every micro-step: the meter has FLOPs."""
        return 0

    def _maybe_log_save_evaluate(
        self, tr_loss: torch.Tensor, grad_norm: Any, *rest: Any, learning_rate: Any = None
    ) -> None:
        """Fetch a step's figures from the GPU, all at once, before anything else is done."""
        if self.control.should_log and self.state.global_step > self._globalstep_last_logged:
            self.control.should_log = False
            self._globalstep_last_logged = self.state.global_step
            logs = self._fetch(tr_loss, grad_norm)
            tr_loss.zero_()
            self._total_loss_scalar += logs["loss"]
            self.log({"skipped": 1.0} if self.skipped else {**logs, "learning_rate": learning_rate})
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, *rest, learning_rate=learning_rate)

    def _fetch(self, loss: torch.Tensor, grad_norm: Any) -> dict[str, float]:
        """What a step was: the one place that waits for the GPU."""
        of_all = self.accelerator.reduce(loss.double()[None], "sum")
        values = [of_all / self.accelerator.num_processes, self._counts]
        if isinstance(grad_norm, DTensor):
            grad_norm = grad_norm.full_tensor()
        if isinstance(grad_norm, torch.Tensor):
            values.append(grad_norm.double()[None])
        mean_loss, tokens, trained, squares, *norm = torch.cat(values).tolist()
        logs = {"loss": mean_loss}
        if norm or grad_norm is not None:
            logs["grad_norm"] = norm[0] if norm else float(grad_norm)  # DeepSpeed's has arrived
        return logs | self.meter.figures(int(tokens), int(trained), squares)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Tell callbacks. The state keeps evaluations alone: it is in every checkpoint."""
        # Our sampler holds the whole run, which the Trainer takes for one pass over the rows.
        done = self.state.global_step * self.recipe.batch.global_batch_size
        self.state.epoch = logs["epoch"] = done / len(self.train_dataset)
        if "eval_loss" in logs:
            self.state.log_history.append({**logs, "step": self.state.global_step})
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, logs)
