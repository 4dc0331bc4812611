"""The only translation of a Recipe into the words of TRL and Transformers.

An upgrade of either touches this file. Knows no paths but those of its run.
"""

from importlib import resources
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedTokenizerFast, PrinterCallback
from trl import SFTConfig, SFTTrainer
from trl.trainer.utils import maybe_gather_lm_head_ctx

from pressroom.console import UserError
from pressroom.recipe import Recipe
from pressroom.run_dir import RunDir
from pressroom.tokenizer import ArticleTokenizer
from train import checkpoint, trackers
from train.data import rank_batch
from train.early_stopping import EarlyStopping
from train.loss import score_in_forward
from train.meter import Meter
from train.model import adapters_to_fp32
from train.preempt import Preemption
from train.samples import Samples
from train.saving import SavingTrainer
from train.speed import quicken
from train.steps import Collator, Steps
from train.watchdog import Watchdog


def training_arguments(recipe: Recipe, run: RunDir, world_size: int, num_rows: int) -> SFTConfig:
    """A recipe in the trainer's words.

    Made before the model is loaded: how it loads can depend on it.
    """
    optimizer, precision = recipe.optimizer, recipe.memory.precision
    return SFTConfig(
        output_dir=str(checkpoint.scratch(run)),
        seed=recipe.seed,
        max_steps=recipe.num_steps(num_rows),
        # Batches
        per_device_train_batch_size=recipe.batch.micro,
        per_device_eval_batch_size=recipe.batch.micro,
        gradient_accumulation_steps=recipe.batch.gradient_accumulation_steps(world_size),
        average_tokens_across_devices=True,
        # Rows: packed and labelled already. `packing` makes the collator restart positions at
        # every article, without which articles attend to each other.
        dataset_kwargs={"skip_prepare_dataset": True},
        packing=True,
        max_length=recipe.sequence_length,
        # Optimizer
        optim=optimizer.name,
        learning_rate=optimizer.learning_rate,
        lr_scheduler_type=optimizer.schedule.replace("constant", "constant_with_warmup"),
        warmup_steps=optimizer.warmup_ratio,
        weight_decay=optimizer.weight_decay,
        max_grad_norm=optimizer.max_grad_norm,
        # Numerics and memory. Asked for bf16, accelerate and DeepSpeed each do something else:
        # FSDP's policy rounds the loss, DeepSpeed the adapters. The model opens autocast itself.
        bf16=False,
        fp16=precision == "fp16",
        # `selective` is the model's: arguments are written as JSON, and hold no function.
        activation_checkpointing=recipe.memory.activation_checkpointing == "full",
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
        # Bookkeeping: the meter does it. The filter would hide a NaN.
        logging_steps=1,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to="none",  # `trackers.callbacks` says to whom
        run_name=trackers.run_name(run),
        project=trackers.PROJECT,
        trackio_static_space_id=False,  # or it publishes the run on the hub
        save_strategy="steps",
        save_steps=recipe.checkpoint.every_steps,
        eval_strategy="steps" if recipe.evaluation.every_steps else "no",
        eval_steps=recipe.evaluation.every_steps,
    )


def build(
    recipe: Recipe,
    run: RunDir,
    arguments: SFTConfig,
    model: PeftModel,
    tokenizer_folder: Path,
    rows: dict[str, Dataset],
    meter: Meter,
    preemption: Preemption,
) -> "RecipeTrainer":
    """The trainer of a run, ready for `train`.

    Raises:
        UserError: The ranks were not started for the recipe's strategy.
    """
    # TRL wants a tokenizer for its padding token; packed rows are never padded or decoded.
    special = ArticleTokenizer(tokenizer_folder)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_folder / "tokenizer.json"))
    tokenizer.bos_token_id, tokenizer.eos_token_id = special.bos_id, special.eos_id
    tokenizer.pad_token_id = special.eos_id
    watchdog = Watchdog(arguments.process_index)
    told = trackers.callbacks(recipe, run)
    trainer = RecipeTrainer(
        model=model,
        args=arguments,
        train_dataset=rows["train"],
        eval_dataset=rows["held_out"],
        processing_class=tokenizer,
        callbacks=[*told, meter, preemption, watchdog],
    )
    _require_strategy(recipe, trainer.accelerator)
    if trainer.accelerator.state.deepspeed_plugin:
        # Or it holds room for 5e8 gradients, 2 GB, where adapters have a tenth of them.
        zero = trainer.accelerator.state.deepspeed_plugin.deepspeed_config["zero_optimization"]
        zero["reduce_bucket_size"] = model.num_parameters(only_trainable=True)
    trainer.remove_callback(PrinterCallback)
    trainer.recipe, trainer.run, trainer.meter = recipe, run, meter
    trainer.preemption, trainer.watchdog = preemption, watchdog
    trainer.data_collator = Collator(trainer.data_collator)
    if recipe.evaluation.early_stopping:
        trainer.add_callback(EarlyStopping(recipe.evaluation.early_stopping))
    if recipe.tracking.sample_every_steps:
        trainer.add_callback(Samples(recipe, run, special, told, meter))
    score_in_forward(trainer.model.get_base_model(), maybe_gather_lm_head_ctx)
    adapters_to_fp32(trainer.model)
    accelerator = trainer.accelerator
    quicken(trainer.model, recipe, accelerator.device, is_main=accelerator.is_main_process)
    return trainer


def _require_strategy(recipe: Recipe, accelerator: Accelerator) -> None:
    """See that the ranks were started as the recipe says: accelerate falls back without a word.

    Raises:
        UserError: They were started for another strategy.
    """
    if accelerator.num_processes == 1:
        return
    kinds = {DistributedType.FSDP: "fsdp"}
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        kinds[DistributedType.DEEPSPEED] = f"zero{accelerator.state.deepspeed_plugin.zero_stage}"
    found, wanted = kinds.get(accelerator.distributed_type, "ddp"), recipe.parallel.strategy
    if found != wanted.removesuffix("_offload"):
        raise UserError(
            f"parallel.strategy: {wanted}, but these {accelerator.num_processes} ranks were "
            f"started for {found}: start them with --config_file "
            f"{resources.files('accelerate_configs') / f'{wanted}.yaml'}"
        )


class RecipeTrainer(Steps, SavingTrainer, SFTTrainer):
    """SFTTrainer that weighs tokens alike, orders rows by itself, and survives faults."""

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Held-out loss, each trained token weighing the same, each row counted once."""
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        world_size, micro = self.args.world_size, self.args.per_device_eval_batch_size
        self.model.eval()
        nll, count = torch.zeros((), dtype=torch.float64, device=self.args.device), 0
        for start in range(0, len(rows), world_size * micro):
            mine = rank_batch(
                rows,
                start,
                rank=self.args.process_index,
                world_size=world_size,
                micro_batch_size=micro,
            )
            batch = self.data_collator(mine)
            count += len(batch["targets"])
            nll += self.prediction_step(self.model_wrapped, batch, prediction_loss_only=True)[0]
            if self.leaves_evaluation():
                return {}
        total = torch.stack([nll, torch.full_like(nll, count)])
        nll_of_all, tokens = self.accelerator.reduce(total, "sum").tolist()
        metrics = {f"{metric_key_prefix}_loss": nll_of_all / tokens}
        self.log(metrics)
        self.model.train()
        self.evaluated(nll_of_all / tokens)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics
