"""A LoRA adapter's factors, tensor by tensor, and whether it is plain LoRA and this base's.

Knows nothing of bases but the shapes of their tensors.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pressroom.console import UserError
from pressroom.files import read_json, sha256_file
from pressroom.nn.pieces import Files

HINT = "take the adapter from the run's newest checkpoint, or train again"
_PREFIX, _A, _B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
_NOT_PLAIN = (
    *("alpha_pattern", "rank_pattern", "modules_to_save", "fan_in_fan_out", "lora_bias"),
    *("use_dora", "use_qalora", "use_bdlora", "layer_replication", "target_parameters"),
    *("trainable_token_indices", "alora_invocation_tokens", "arrow_config"),
)
"""Keys of an adapter that is more than B·A on some linear layers."""
_KEEPS_THE_BASE = (None, True, False, "gaussian", "orthogonal", "eva")
"""Ways of starting an adapter after which the base is still what its files say."""


@dataclass(frozen=True)
class Factors:
    """What is added to one weight: scale · B·A."""

    a_RI: torch.Tensor
    b_OR: torch.Tensor
    scale: float


class Adapter:
    """A folder that peft saved.

    Raises:
        UserError: It is damaged, pickled, or not plain LoRA.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        weights = folder / "adapter_model.safetensors"
        if not weights.is_file() and (folder / "adapter_model.bin").is_file():
            raise UserError(
                f"{folder}/adapter_model.bin: is not read: a pickle can run any code; safetensors "
                "cannot: have peft save it anew with safe_serialization=True"
            )
        self.config: dict[str, Any] = read_json(folder / "adapter_config.json", HINT)
        if not isinstance(self.config, dict):
            raise UserError(f"{folder}/adapter_config.json: is no JSON object; {HINT}")
        _require_plain(folder, self.config)
        if not weights.is_file():
            raise UserError(f"{weights}: missing; {HINT}")
        self._files = Files(folder, HINT)
        self.fingerprint = [sha256_file(weights), sha256_file(folder / "adapter_config.json")]

    @property
    def targets(self) -> list[str]:
        """Names of the base's weights that it changes."""
        factors = (name for name in self._files.file_of if name.endswith((_A, _B)))
        stems = {name.removesuffix(_A).removesuffix(_B) for name in factors}
        return sorted(f"{stem.removeprefix(_PREFIX)}.weight" for stem in stems)

    def tensor(self, name: str) -> torch.Tensor:
        """A factor, by its name in the base, as it lies in its file."""
        return self._files.read(_PREFIX + name)

    def factors(self, name: str, device: torch.device) -> Factors | None:
        """What is added to a weight, fp32; None where nothing is."""
        stem = _PREFIX + name.removesuffix(".weight")
        if stem + _A not in self._files.file_of:
            return None
        a_RI = self._files.read(stem + _A).to(device, torch.float32, copy=True)
        b_OR = self._files.read(stem + _B).to(device, torch.float32, copy=True)
        rank = len(a_RI)
        root = math.sqrt(rank) if self.config.get("use_rslora") else rank
        return Factors(a_RI, b_OR, self.config["lora_alpha"] / root)

    def require_fit(self, shapes: dict[str, tuple[int, ...]], base: str) -> None:
        """Hold its tensors against a base's.

        Args:
            shapes: Of the base's tensors, by name.
            base: What the base is called.

        Raises:
            UserError: It is another base's, or has tensors that B·A has no place for.
        """
        strangers = [n for n in self._files.file_of if not n.endswith((_A, _B))]
        problems = [f"{name}: is no factor of a linear layer" for name in strangers]
        for target in self.targets:
            stem, there = _PREFIX + target.removesuffix(".weight"), shapes.get(target)
            if not {stem + _A, stem + _B} <= self._files.file_of.keys():
                problems.append(f"{target}: one of the adapter's two factors is missing")
                continue
            own = (len(self._files.read(stem + _B)), self._files.read(stem + _A).shape[1])
            if there is None:
                problems.append(f"{target}: the base has no such weight")
            elif own != there:
                problems.append(f"{target}: is {list(there)}, and the adapter's {list(own)}")
        if problems:
            more = f"\n  and {len(problems) - 3} more" if len(problems) > 3 else ""
            raise UserError(
                f"{self.folder}: the adapter is not one of {base}:\n  "
                + "\n  ".join(problems[:3])
                + more
            )


def _require_plain(folder: Path, config: dict[str, Any]) -> None:
    """See that merging is adding B·A, and nothing else.

    Raises:
        UserError: Naming the keys that say otherwise.
    """
    wrong = [f"{key}: {config[key]}" for key in _NOT_PLAIN if config.get(key)]
    if config.get("peft_type") != "LORA":
        wrong.append(f"peft_type: {config.get('peft_type')}")
    if config.get("bias", "none") != "none":
        wrong.append(f"bias: {config['bias']}")
    if config.get("init_lora_weights") not in _KEEPS_THE_BASE:
        wrong.append(f"init_lora_weights: {config['init_lora_weights']}")
    if not isinstance(config.get("lora_alpha"), int | float):
        wrong.append(f"lora_alpha: {config.get('lora_alpha')}")
    if wrong:
        raise UserError(
            f"{folder}/adapter_config.json: only plain LoRA is merged: {', '.join(wrong)}"
        )
