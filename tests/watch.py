"""One rank's training with its insides watched: what it holds, in which dtypes, its gradients."""

import os
from typing import Any

import torch


def watched_training(
    home: str, overrides: tuple[str, ...], run: str | None = None
) -> dict[str, Any]:
    """Prepare and fine-tune `home/recipe.yaml`; alone, or as one of several ranks.

    Returns:
        The run, how it was distributed, the dtypes of the numerics table, the bytes of 4-bit
        codes that this rank holds, and the adapters' gradients of each step by name.
    """
    os.chdir(home)
    os.environ["PRESSROOM_HOME"] = home
    from accelerate.state import AcceleratorState

    from data_prep.prepare import prepare
    from pressroom.recipe import Recipe
    from train import sft, trainer

    recipe = Recipe.load("recipe.yaml", overrides)
    found: dict[str, Any] = {"gradients": [], "dtypes": {}}
    build = trainer.build

    def watched(*arguments: Any) -> Any:
        built = build(*arguments)
        _watch(built, found)
        return built

    trainer.build = watched
    try:
        finished = sft.fine_tune(recipe, run, str(prepare(recipe)))
    finally:
        trainer.build = build
    state = AcceleratorState()
    return {
        **found,
        "run": str(finished.path),
        "distributed_type": state.distributed_type.value,
        "world_size": state.num_processes,
    }


def _watch(trainer: Any, found: dict[str, Any]) -> None:
    from transformers import TrainerCallback

    dtypes = found["dtypes"]

    class Watch(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
            adapters = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
            dtypes["base"] = _names({trainer.model.get_input_embeddings().weight.dtype})
            dtypes["adapters"] = _names({p.dtype for p in adapters.values()})
            gradients = {n: p.grad for n, p in adapters.items() if p.grad is not None}
            dtypes["gradients"] = _names({g.dtype for g in gradients.values()})
            whole = {n: _whole(g).clone().numpy() for n, g in gradients.items()}
            found["gradients"].append(whole)
            found["code_bytes"] = sum(_code_bytes(m) for m in trainer.model.modules())
            dtypes["reduction"] = _reduction(trainer)
            optimizer = getattr(trainer.model_wrapped, "optimizer", None)
            found["bucket"] = getattr(optimizer, "reduce_bucket_size", None)

    def see(name: str) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            dtypes[name] = _names({output.dtype})

        return hook

    modules = dict(trainer.model.named_modules())
    watched = {"compute": "q_proj.base_layer", "adapter outputs": "q_proj.lora_A.default"}
    for name, where in watched.items():
        module = next(m for n, m in modules.items() if n.endswith(where))
        module.register_forward_hook(see(name))
    compute_loss = trainer.compute_loss

    def loss_of(*arguments: Any, **keywords: Any) -> Any:
        loss = compute_loss(*arguments, **keywords)
        dtypes["loss"] = _names({loss.dtype})
        return loss

    trainer.compute_loss = loss_of
    trainer.add_callback(Watch())


def _reduction(trainer: Any) -> str:
    """The dtype in which gradients travel."""
    model = trainer.model_wrapped
    if hasattr(model, "communication_data_type"):  # DeepSpeed's engine
        return _names({model.communication_data_type})
    policies = {
        m._get_fsdp_state()._mp_policy.reduce_dtype
        for m in trainer.model.modules()
        if hasattr(m, "_get_fsdp_state")
    }
    # Where nothing else is said, gradients travel in their own dtype.
    own = {p.grad.dtype for p in trainer.model.parameters() if p.grad is not None}
    return _names((policies - {None}) or own)


def _names(dtypes: set[torch.dtype | None]) -> str:
    return ", ".join(sorted(str(d).removeprefix("torch.") for d in dtypes))


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def _code_bytes(module: Any) -> int:
    """Bytes of a layer's 4-bit codes on this rank."""
    from bitsandbytes.nn import Linear4bit

    if not isinstance(module, Linear4bit):  # peft's wrapper of one is called so too
        return 0
    weight = module.weight
    if hasattr(weight, "ds_tensor"):
        weight = weight.ds_tensor
    elif hasattr(weight, "to_local"):
        weight = weight.to_local()
    return weight.numel() * weight.element_size()
