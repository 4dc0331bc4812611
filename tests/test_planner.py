"""The planner's choices and its command, as its users meet them."""

import json
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path

import pytest
from click.testing import CliRunner
from test_house import modules_after

from pressroom.console import UserError
from pressroom.geometry import SIZES
from pressroom.gpus import Driver
from pressroom.planner import here
from pressroom.planner.choice import Gpus, option, options
from pressroom.planner.command import main
from pressroom.planner.curve import curve, stops_paying
from pressroom.planner.fits import nearest_fits, resolve
from pressroom.planner.gpu_kinds import kind_of, parse_gpus
from pressroom.planner.memory import GIB, gpu_memory
from pressroom.planner.setup import Setup
from pressroom.planner.sharding import held, whole
from pressroom.recipe import AUTO_KEYS, Recipe
from pressroom.train_sections import Quantization

ALL_AUTO = [f"{key}=auto" for key in AUTO_KEYS]


def on(text: str) -> Gpus:
    nodes, per_node, kind = parse_gpus(text)
    return Gpus(kind=kind, nodes=nodes, gpus_per_node=per_node)


def setup_of(size: str, gpus: str, *overrides: str) -> Setup:
    there = on(gpus)
    batch = ["batch.global_batch_size=64", "batch.micro_batch_size=1"]
    ours = [b for b in batch if b.partition("=")[0] not in "".join(overrides)]
    recipe = Recipe.load("llama2_70b", [*ours, *overrides])
    return Setup.of(recipe, SIZES[size], there.kind, there.nodes, there.gpus_per_node)


def plan(*words: str) -> str:
    done = CliRunner().invoke(main, list(words), catch_exceptions=False, standalone_mode=False)
    assert done.exit_code == 0, done.output
    return done.output


# Memory


@pytest.mark.parametrize("ranks", [2, 8])
def test_strategies_divide_what_they_say(ranks: int) -> None:
    def held_under(strategy: str):
        return held(setup_of("7b", f"{ranks}xh100", f"parallel.strategy={strategy}"))

    total = whole(setup_of("7b", f"{ranks}xh100"))
    for strategy in ("fsdp", "zero3"):
        assert held_under(strategy).codes == total.codes / ranks
        assert held_under(strategy).scales == total.scales  # no parameters: whole everywhere
    assert held_under("zero2").codes == held_under("ddp").codes == total.codes
    assert held_under("zero2").gradients == total.gradients / ranks
    assert held_under("ddp").gradients == total.gradients
    assert held_under("fsdp_offload").codes == 0


def test_fsdp_keeps_whole_gradients_while_it_accumulates() -> None:
    fsdp = ["parallel.strategy=fsdp", "batch.global_batch_size=16"]
    many = held(setup_of("7b", "2xh100", *fsdp, "batch.micro_batch_size=4"))
    once = held(setup_of("7b", "2xh100", *fsdp, "batch.micro_batch_size=8"))
    assert many.gradients == 2 * once.gradients


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "zero2", "zero3"])
def test_checkpointing_and_smaller_batches_need_less(strategy: str) -> None:
    def peak(mode: str, micro: int) -> float:
        keys = (f"parallel.strategy={strategy}", f"memory.activation_checkpointing={mode}")
        keys += ("speed.save=plain",)  # under `selective` layers are
        batch = ("batch.global_batch_size=32", f"batch.micro_batch_size={micro}")
        rows = gpu_memory(setup_of("13b", "4xa100-80", *keys, *batch)).step
        return sum(rows.values())

    assert peak("full", 4) < peak("selective", 4) < peak("none", 4)
    assert peak("full", 2) < peak("full", 4)


def test_fsdp_divides_each_layer_as_it_is_read_and_zero3_the_whole_base() -> None:
    def memory(strategy: str):
        return gpu_memory(setup_of("70b", "8xa100-80", f"parallel.strategy={strategy}"))

    fsdp, zero3, offload = map(memory, ("fsdp", "zero3", "fsdp_offload"))
    assert zero3.load["4-bit weights"] == 8 * zero3.step["4-bit weights"]
    assert fsdp.load["4-bit weights"] == fsdp.step["4-bit weights"]
    assert offload.load["4-bit weights"] == 0
    codes = 8 * fsdp.load["4-bit weights"]
    for streamed in (fsdp, offload):
        assert codes / 80 < streamed.load["layer being divided"] < 1.2 * codes / 80
        assert sum(streamed.load.values()) < sum(streamed.step.values())


# Choices


def test_70b_fits_8_a100_40_under_fsdp_and_says_how() -> None:
    text = plan("70b", "--gpus", "8xA100-40")
    assert "8 x a100-40: fits" in text
    assert "fsdp, full checkpointing" in text
    assert "at load" in text
    assert "in a step" in text


def test_on_24_gb_the_faster_of_7bs_fits_is_chosen_and_both_are_named() -> None:
    text = plan("7b", "--gpus", "rtx4090")
    assert "rows of 2,048 tokens" in text
    recipe = Recipe.load("llama2_70b", [*ALL_AUTO, "sequence_length=2048"])
    chosen, reasons = resolve(recipe, SIZES["7b"], on("rtx4090"))
    line = next(reason for reason in reasons if reason.startswith("memory."))
    assert f"auto: {line}" in text
    assert "activation_checkpointing=none" in line
    assert "full checkpointing" in line
    fitting = [o for o in options(recipe, SIZES["7b"], on("rtx4090")) if o.plan.fits_well]
    modes = {o.recipe.memory.activation_checkpointing for o in fitting}
    assert {"none", "full"} <= modes
    best = option(chosen, SIZES["7b"], on("rtx4090")).plan.tokens_per_second_per_gpu
    assert best == max(o.plan.tokens_per_second_per_gpu for o in fitting)


def test_70b_does_not_fit_one_24_gb_and_the_nearest_fit_is_named() -> None:
    recipe = Recipe.load("llama2_70b")
    found = nearest_fits(recipe, SIZES["70b"], on("rtx3090"))
    assert found
    for near in found:
        assert near.changes[0].startswith("--gpus ")
        # What is advised is what fits, typed as advised.
        overrides = [c for c in near.changes if not c.startswith("--gpus")]
        gpus = on(near.changes[0].split()[1])
        again = option(Recipe.load("llama2_70b", overrides), SIZES["70b"], gpus)
        assert again.plan.fits_well
        assert again.plan.peak_gib == near.plan.peak_gib
    rooms = [near.gpus.count * near.gpus.kind.memory_gib for near in found]
    assert rooms == sorted(rooms)


def test_a_smaller_micro_batch_is_advised_before_another_training() -> None:
    big = ["batch.global_batch_size=32", "batch.micro_batch_size=32"]
    recipe = Recipe.load("llama2_7b", big)
    assert not option(recipe, SIZES["7b"], on("rtx4090")).plan.fits
    first = nearest_fits(recipe, SIZES["7b"], on("rtx4090"))[0]
    assert any(change.startswith("batch.micro_batch_size=") for change in first.changes)
    assert not any(change.startswith(("sequence", "--gpus")) for change in first.changes)


def test_a_base_that_is_not_quantized_may_be() -> None:
    recipe = replace(Recipe.load("llama2_70b"), quantization=None)
    found = nearest_fits(recipe, SIZES["70b"], on("a100-80"))
    assert "quantization={}" in found[0].changes
    assert found[0].recipe.quantization == Quantization()


def test_auto_obeys_the_rules_between_sections() -> None:
    fp16 = ["memory.precision=fp16", "quantization.compute_dtype=float16"]
    recipe = Recipe.load("llama2_7b", [*ALL_AUTO, *fp16])
    assert {o.recipe.parallel.strategy for o in options(recipe, SIZES["7b"], on("4xt4"))} == {"ddp"}


def test_auto_fills_in_every_key_and_nothing_else() -> None:
    recipe = Recipe.load("llama2_13b", ALL_AUTO)
    chosen, reasons = resolve(recipe, SIZES["13b"], on("8xa100-40"))
    assert chosen.autos == ()
    assert len(reasons) == len(AUTO_KEYS)
    assert (chosen.speed.save, chosen.speed.cache) in product(("all", "less", "least"), ("none",))
    back = replace(
        chosen,
        batch=recipe.batch,
        memory=recipe.memory,
        parallel=recipe.parallel,
        speed=recipe.speed,
    )
    assert back == recipe
    assert chosen.batch.divides_over(8)


ROOM = {"9999": ("all", "all"), "141": ("all", "none"), "100": ("less", "none")}
"""GiB of a GPU -> what layers keep, and whether weights are dequantized once."""


@pytest.mark.parametrize("gib", ROOM)
def test_speed_is_what_the_room_that_is_left_allows(gib: str) -> None:
    """70B in micro-batches of 4,096 tokens, nothing checkpointed."""
    keys = ["batch.micro_batch_size=2", "batch.global_batch_size=2", "sequence_length=2048"]
    keys += ["parallel.strategy=ddp", "memory.activation_checkpointing=none"]
    gpus = Gpus(kind=replace(kind_of("h200"), memory_gib=float(gib)))
    recipe = Recipe.load("llama2_70b", keys)
    found, _ = resolve(recipe, SIZES["70b"], gpus)
    assert (found.speed.save, found.speed.cache) == ROOM[gib]
    assert replace(found, speed=recipe.speed) == recipe
    assert option(found, SIZES["70b"], gpus).plan.fits_well
    again, _ = resolve(found, SIZES["70b"], gpus)
    assert again == found


@pytest.mark.parametrize("gib", [24.0, 141.0])
def test_under_a_checkpoint_lean_layers_keep_no_less(gib: float) -> None:
    """Not even where nothing fits: the recipe would break a rule."""
    gpus = Gpus(kind=replace(kind_of("h200"), memory_gib=gib))
    keys = ["parallel.strategy=ddp", "memory.activation_checkpointing=full"]
    found, _ = resolve(Recipe.load("llama2_70b", keys), SIZES["70b"], gpus)
    assert found.speed.save == "all"
    assert not list(found.broken_rules())


def test_divided_weights_are_not_dequantized_once() -> None:
    for strategy, is_cached in (("ddp", True), ("zero2", True), ("fsdp", False)):
        keys = [f"parallel.strategy={strategy}", "speed.cache=all"]
        setup = option(Recipe.load("llama2_70b", keys), SIZES["7b"], on("2xh200")).plan.setup
        assert setup.is_cached is is_cached, strategy


def test_each_way_to_keep_less_needs_less_and_takes_longer() -> None:
    def planned(*keys: str):
        recipe = Recipe.load("llama2_70b", ["parallel.strategy=ddp", *keys])
        return option(recipe, SIZES["70b"], on("h200")).plan

    none, full = (f"memory.activation_checkpointing={mode}" for mode in ("none", "full"))
    ways = [planned(none, f"speed.save={save}") for save in ("all", "less", "least")]
    ways.append(planned(full))
    for more, less in pairwise(ways):
        assert less.peak_gib < more.peak_gib
        assert less.tokens_per_second_per_gpu < more.tokens_per_second_per_gpu
    plain = planned(none, "speed=off")
    assert plain.peak_gib > ways[0].peak_gib
    assert plain.tokens_per_second_per_gpu < ways[0].tokens_per_second_per_gpu


@pytest.mark.parametrize(
    "keys",
    [
        ("speed=off",),
        ("speed.save=plain",),
        ("lora.dropout=0.1",),
        ("lora.target_modules=[q_proj]",),
        ("parallel.strategy=zero3",),
        ("memory.activation_checkpointing=selective",),
    ],
    ids=str,
)
def test_what_stays_plain_is_planned_plain(keys: tuple[str, ...]) -> None:
    for given, save in ((keys, "plain"), (("memory.activation_checkpointing=none",), "all")):
        strategy = () if "zero3" in given[0] else ("parallel.strategy=ddp",)
        cache = () if given == ("speed=off",) else ("speed.cache=all",)
        recipe = Recipe.load("llama2_70b", [*strategy, *cache, *given])
        setup = option(recipe, SIZES["7b"], on("h200")).plan.setup
        assert (setup.save, setup.is_cached) == (save, save == "all")


def test_on_a_cpu_a_cache_takes_a_fifth_of_memory_at_most() -> None:
    recipe = Recipe.load("llama2_70b", ["parallel.strategy=ddp", "batch.micro_batch_size=1"])
    cached = 2 * SIZES["7b"].num_linear_weights / GIB
    for gib, cache in ((cached / 0.19, "all"), (cached / 0.21, "none")):
        settled, _ = resolve(recipe, SIZES["7b"], Gpus(kind=here.cpu(gib)))
        assert settled.speed.cache == cache


def test_two_ways_to_compute_again_are_refused() -> None:
    keys = ["speed.save=less", "memory.activation_checkpointing=full"]
    with pytest.raises(UserError, match=r"speed.save: less has layers compute .* left out"):
        Recipe.load("llama2_7b", keys)
    recipe = Recipe.load("llama2_7b", [*ALL_AUTO, "speed.save=less"])
    every = options(recipe, SIZES["7b"], on("h100"))
    assert {o.recipe.memory.activation_checkpointing for o in every} == {"none"}


def test_auto_that_fits_nowhere_says_what_would() -> None:
    recipe = Recipe.load("llama2_70b", ALL_AUTO)
    with pytest.raises(UserError, match=r"nothing fits 1xl4.*\n.*what would fit"):
        resolve(recipe, SIZES["70b"], on("l4"))


def test_without_bf16_the_recipe_is_refused() -> None:
    with pytest.raises(UserError, match=r"t4 has none: use memory\.precision=fp16"):
        setup_of("7b", "t4")


def test_this_machines_gpus_are_planned_for(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(here, "count_gpus", lambda: 2)
    driver = Driver(gpus=("NVIDIA RTX A6000",) * 2, memory_gib=47.5)
    monkeypatch.setattr(here, "ask_driver", lambda: driver)
    text = plan("7b")
    assert "2 x NVIDIA RTX A6000: fits" in text
    assert "rates of l40s, the nearest in memory" in text
    card = Driver(gpus=("NVIDIA H200",) * 2, memory_gib=140.4)
    monkeypatch.setattr(here, "ask_driver", lambda: card)
    assert "2 x h200: fits" in plan("7b")


# Scale


def test_more_gpus_never_cost_less_and_never_take_longer() -> None:
    recipe = Recipe.load("llama2_70b", ["batch.global_batch_size=1024"])
    fixed = curve(recipe, SIZES["70b"], on("8xh100"), 10**8, grow=False)
    grown = curve(recipe, SIZES["70b"], on("8xh100"), 10**8, grow=True)
    assert [point.count for point in fixed] == [2**n for n in range(11)]
    for points in (fixed, grown):
        for before, after in pairwise(points):
            assert after.run_seconds < before.run_seconds
            # Larger micro-batches fit where more GPUs divide the base: they save a hundredth.
            assert after.gpu_hours >= before.gpu_hours * 0.99
    assert {point.global_batch_size for point in fixed} == {1024}
    end = stops_paying(fixed)
    assert end
    assert end.count < 1024


def test_a_slow_network_is_felt_between_nodes() -> None:
    recipe = Recipe.load("llama2_70b", ["batch.micro_batch_size=1"])
    slow = replace(kind_of("h100"), network_gb_per_second=1)
    one = option(recipe, SIZES["70b"], Gpus(kind=slow, gpus_per_node=8)).plan.step
    two = option(recipe, SIZES["70b"], Gpus(kind=slow, nodes=2, gpus_per_node=8)).plan.step
    assert one.communication == pytest.approx(0, abs=0.1)
    assert two.communication > one.communication + 0.5


# The command


def test_json_has_every_figure(home: Path) -> None:
    steps = ("optimizer.num_steps=100", "optimizer.num_epochs=null")
    found = json.loads(plan("7b", *steps, "--gpus", "2x8xh100", "--json"))
    assert found["nodes"] == 2
    assert found["peak_gib"] == pytest.approx(sum(found["step_gib"].values()), abs=0.02)
    assert found["gpu_hours"] == pytest.approx(found["run_hours"] * 16, rel=0.01)
    assert found["num_steps"] == 100


def test_a_config_and_a_cluster_file_are_planned(home: Path, tiny_model: Path) -> None:
    text = "partition: gpu\ngpu: a100-80\nnodes: 2\ngpus_per_node: 4\ntime_limit: '1:00:00'\n"
    (home / "c.yaml").write_text(text)
    assert "2 nodes of 4 x a100-80: fits" in plan(str(tiny_model), "--cluster", "c.yaml")
    assert "1 x t4" in plan(
        *(str(tiny_model / "config.json"), "memory.precision=fp16"),
        *("quantization.compute_dtype=float16", "--gpus", "t4"),
    )


def test_auto_is_explained(home: Path) -> None:
    text = plan("llama2_13b", *ALL_AUTO, "--gpus", "4xa100-80")
    for key in AUTO_KEYS:
        assert f"auto: {key}=" in text


def test_what_does_not_fit_is_advised(home: Path, capsys) -> None:
    text = plan("70b", "--gpus", "rtx3090")
    assert "does not fit" in text
    assert "--gpus" in text


def test_the_curve_is_drawn(home: Path) -> None:
    text = plan("13b", "--gpus", "8xa100-80", "--curve", "c.png")
    assert "loading included" in text
    assert (home / "c.png").read_bytes().startswith(b"\x89PNG")


def test_planning_needs_no_torch() -> None:
    loaded = modules_after(
        "from pressroom.planner.command import main\n"
        "main(['70b', '--gpus', '8xh100'], standalone_mode=False)"
    )
    assert loaded.isdisjoint({"torch", "transformers", "datasets", "numpy", "matplotlib"})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["7b", "--gpus", "8xa100"], "did you mean a100-40 or a100-80"),
        (["7b", "--gpus", "8xh100", "--cluster", "c.yaml"], "give one of them"),
        (["7b", "--gpus", "h100", "--curve", "c.gif"], "must end in one of .png"),
        (["7b"], "say which, as in --gpus"),
        (["bad.json", "--gpus", "h100"], "not JSON"),
        (["gpt.json", "--gpus", "h100"], "model_type is 'gpt2': only 'llama' is supported"),
        (["none.json", "--gpus", "h100"], "neither a size"),
        (["7b", "sequence_length=8192", "--gpus", "h100"], "positions up to 4,096"),
        (["llama2_13b", "--gpus", "3xh100"], "do not divide over 3 ranks"),
    ],
)
def test_mistakes_are_told(home: Path, words: list[str], message: str) -> None:
    (home / "bad.json").write_text("{")
    (home / "gpt.json").write_text('{"model_type": "gpt2"}')
    (home / "c.yaml").write_text("")
    with pytest.raises(UserError) as told:
        plan(*words)
    assert message in str(told.value)
    assert GIB
