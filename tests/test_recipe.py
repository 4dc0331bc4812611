"""The shipped recipes load, and the batch arithmetic is exact."""

from importlib import resources
from typing import get_args

import pytest
import yaml

from pressroom.console import UserError
from pressroom.recipe import Recipe
from pressroom.train_sections import Batch, Strategy

RECIPES = [
    file.name.removesuffix(".yaml")
    for file in resources.files("train.recipes").iterdir()
    if file.name.endswith(".yaml")
]
STRATEGIES = get_args(Strategy)


@pytest.mark.parametrize("name", RECIPES)
def test_shipped_recipe_loads_by_name_and_survives_a_round_trip(name: str, tmp_path) -> None:
    recipe = Recipe.load(name)
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(yaml.safe_dump(recipe.to_dict()))
    assert Recipe.load(str(resolved)) == recipe
    text = (resources.files("train.recipes") / f"{name}.yaml").read_text()
    assert len(text.splitlines()) <= 60


def test_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"did you mean llama2_7b\?"):
        Recipe.load("llama2_7")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_accelerate_config_says_sharding_only(strategy: str) -> None:
    text = (resources.files("accelerate_configs") / f"{strategy}.yaml").read_text()
    config = yaml.safe_load(text)
    for name in ("num_processes", "num_machines", "machine_rank", "main_process_port"):
        assert name not in config
    assert "gradient_accumulation_steps" not in text
    assert "gradient_clipping" not in text


@pytest.mark.parametrize(("world_size", "steps"), [(1, 16), (2, 8), (4, 4), (16, 1)])
def test_global_batch_stays_whatever_the_ranks(world_size: int, steps: int) -> None:
    batch = Batch(global_batch_size=32, micro_batch_size=2)
    assert batch.gradient_accumulation_steps(world_size) == steps


def test_arithmetic_line() -> None:
    batch = Batch(global_batch_size=64, micro_batch_size=1)
    assert batch.arithmetic(8, 4096) == (
        "64 global = 1 micro x 8 accumulation x 8 ranks; up to 262,144 tokens a step"
    )


def test_ranks_that_do_not_fit_are_refused_with_those_that_do() -> None:
    batch = Batch(global_batch_size=12, micro_batch_size=2)
    with pytest.raises(UserError, match="over 4 ranks; world sizes that fit: 1, 2, 3, 6"):
        batch.gradient_accumulation_steps(4)
