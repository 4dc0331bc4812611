"""The launcher's commands are pure functions, and the chain skips, resumes and refuses."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import psutil
import pytest
from test_train import BF16
from training import adapter, losses, metrics, train

from data_prep.prepare import prepare
from launch import local, stages
from launch.command import Node, train_command
from launch.keys import stage_keys
from launch.recorded import recorded
from pressroom.console import UserError
from pressroom.gpus import count_gpus
from pressroom.locks import lock
from pressroom.recipe import Recipe
from pressroom.run_dir import RunDir
from pressroom.runs import runs_of
from pressroom.train_sections import Strategy
from train import checkpoint

PRESSROOM = str(Path(sys.executable).with_name("pressroom"))


def pressroom(*arguments: str, code: int = 0) -> str:
    """Run the command in the working directory; return what it wrote to both streams."""
    done = subprocess.run(
        [PRESSROOM, *arguments], capture_output=True, text=True, check=False, timeout=240
    )
    output = done.stdout + done.stderr
    assert done.returncode == code, output
    assert code == 0 or "Traceback" not in output, output
    return output


def descendants(process_id: int) -> list[int]:
    """A process and all that it started."""
    parent = psutil.Process(process_id)
    return [process_id, *(child.pid for child in parent.children(recursive=True))]


def wait_for(process: subprocess.Popen, home: Path, pattern: str) -> None:
    """Until a file of the run is there, while the process lives."""
    deadline = time.monotonic() + 120
    while not list((home / "runs" / "tiny").glob(pattern)):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_gpus_are_those_a_process_would_see(monkeypatch: pytest.MonkeyPatch) -> None:
    for visible, count in (("0,1,3", 3), ("", 0), ("-1", 0), ("GPU-abc", 1)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert count_gpus() == count


def test_train_command_on_gpus(make_recipe, home: Path) -> None:
    recipe = make_recipe(batch={"global_batch_size": 8, "micro_batch_size": 1})
    command = train_command(
        recipe, RunDir(Path("runs/x")), Path("data/d"), Node(num_gpus=4, num_cpus=32)
    )
    text = " ".join(command)
    assert "accelerate_configs/ddp.yaml --num_machines 1 --num_processes 4" in text
    assert "--num_cpu_threads_per_process 8" in text
    assert text.endswith("-m train.sft runs/x/recipe.yaml --run runs/x --dataset data/d")
    assert "--cpu" not in command


def test_train_command_on_a_cpu(make_recipe) -> None:
    recipe = make_recipe()
    run, dataset = RunDir(Path("runs/x")), Path("data/d")
    command = train_command(recipe, run, dataset, Node(num_gpus=0, num_cpus=2))
    assert "--cpu" in command
    assert command[command.index("--config_file") + 1].endswith("accelerate_configs/single.yaml")


def test_a_user_own_accelerate_default_has_no_say(make_recipe) -> None:
    recipe, run = make_recipe(), RunDir(Path("runs/x"))
    command = train_command(recipe, run, Path("data/d"), Node(num_gpus=1, num_cpus=2))
    assert command[command.index("--config_file") + 1].endswith("single.yaml")
    assert "--cpu" not in command


def test_nvidia_smi_is_counted_by_lines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: RTX 3080 Laptop GPU (UUID: GPU-1)'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert count_gpus() == 1
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert count_gpus() == 0


def test_only_as_many_gpus_as_the_batch_divides_over(make_recipe, caplog) -> None:
    recipe = make_recipe(batch={"global_batch_size": 12, "micro_batch_size": 2})
    assert [local.num_ranks(recipe, n) for n in (1, 2, 3, 4, 5, 8)] == [1, 2, 3, 3, 3, 6]
    assert "using 6 of 8 GPUs" in caplog.text


def test_what_only_a_gpu_can_is_told_together(make_recipe) -> None:
    recipe = make_recipe(
        memory={"precision": "fp16"},
        quantization={"compute_dtype": "float16", "storage_dtype": "float16"},
        optimizer={"name": "paged_adamw_32bit", "num_steps": 1},
    )
    with pytest.raises(UserError, match=r"fp16 needs a GPU.*\n.*pages from a GPU"):
        train_command(recipe, RunDir(Path("x")), Path("d"), Node(num_gpus=0, num_cpus=2))


def test_what_this_machine_cannot_do_is_said_before_any_work(make_recipe, home: Path) -> None:
    make_recipe()
    output = pressroom("run", "recipe.yaml", "parallel.strategy=fsdp", code=2)
    assert "this machine has no GPU:\nparallel.strategy: fsdp shards over GPUs" in output
    assert not (home / "data").exists()
    assert not (home / "runs").exists()


def test_one_error_of_the_chain_is_one_line(make_recipe, home: Path) -> None:
    make_recipe(data={"articles": ["nowhere.jsonl"]})
    output = pressroom("run", "recipe.yaml", "seed=x", code=2)
    assert output == 'error: command line: seed: must be a whole number, not "x"\n'
    output = pressroom("run", "recipe.yaml", code=2)
    assert output.startswith("error: data.articles: nowhere.jsonl: no such file")
    assert output.count("\n") == 1


SECRETS = {
    "HF_TOKEN": "hf_abcdefghijklmnopqrstuvwx",
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "MEDIASTACK_ACCESS_KEY": "fedcba9876543210fedcba9876543210",
}


def test_the_chain_runs_skips_and_redoes_only_what_changed(
    make_recipe, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    make_recipe(checkpoint={"every_steps": 3})
    output = pressroom("run", "recipe.yaml")
    (run,) = runs_of("tiny")
    for path in (run.adapter, run.merge_report, run.evaluation, run.samples, run.metrics):
        assert path.exists(), output
    assert "finished" in run.report.read_text()
    written = [path for path in home.rglob("*") if path.is_file()]
    assert {run.report, run.summary, run.environment} <= set(written)
    for secret in SECRETS.values():
        assert secret not in output
        assert not [path for path in written if secret.encode() in path.read_bytes()]
    assert "4 global = 2 micro x 2 accumulation x 1 rank" in output
    first = run.stages
    assert list(first) == ["train", "evaluate", "merge", "generate"]

    start = time.monotonic()
    output = pressroom("run", "recipe.yaml")
    assert output.count("done already") == 5
    assert time.monotonic() - start < 20
    assert run.stages == first

    output = pressroom("run", "recipe.yaml", "generation.titles=1")
    assert output.count("done already") == 4
    assert len(runs_of("tiny")) == 1
    assert len(run.samples.read_text().splitlines()) == 2
    assert {k: v for k, v in run.stages.items() if k != "generate"} == {
        k: v for k, v in first.items() if k != "generate"
    }

    text = pressroom("generate", "tiny", "city!", "--max-new-tokens", "4")
    assert text.startswith("city!")


def test_keys_follow_what_a_stage_reads(make_recipe, home: Path, tiny_model: Path) -> None:
    make_recipe()

    # The same shape and size, other weights.
    shutil.copytree(tiny_model, home / "other")
    weights = home / "other" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-100] ^= 1
    weights.write_bytes(data)

    def keys(*overrides: str) -> stages.Keys:
        return stages.stage_keys(Recipe.load("recipe.yaml", overrides))

    base = keys()
    assert keys("checkpoint.every_steps=7", "evaluation.every_steps=2") == base
    assert keys("generation.titles=9").train == base.train
    assert keys("generation.titles=9").generate != base.generate
    assert keys("generation.max_new_tokens=9").evaluate != base.evaluate
    assert keys("evaluation.titles=9").evaluate != base.evaluate
    none = "evaluation.titles=0"
    assert keys(none, "generation.max_new_tokens=9").evaluate == keys(none).evaluate
    changed = keys("lora.r=2")
    assert changed.dataset == base.dataset
    assert {changed.train, changed.evaluate, changed.merge}.isdisjoint(
        {base.train, base.evaluate, base.merge}
    )
    assert keys("data.lower_case=true").dataset != base.dataset
    assert keys("model.base=./other").train != base.train
    assert keys("model.base=./other").dataset == base.dataset
    (home / "other" / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<s>", "eos_token": "<unk>"})
    )
    assert keys("model.base=./other").dataset != base.dataset
    with (home / "articles.jsonl").open("a") as file:
        file.write(json.dumps({"title": "New", "description": "One more."}) + "\n")
    assert keys().dataset != base.dataset
    assert keys().train != base.train


def test_a_killed_training_goes_on_where_it_was(make_recipe, home: Path) -> None:
    """SIGKILL to everything in mid-training; the same command ends with the same losses."""
    make_recipe(checkpoint={"every_steps": 5, "keep_last": 2})
    options = ("optimizer.num_steps=120", "batch.global_batch_size=4")
    undisturbed = train(*options)
    process = subprocess.Popen(
        [PRESSROOM, "train", "recipe.yaml", *options],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for(process, home, "*/checkpoints/step-000010")
    for group in {os.getpgid(child) for child in descendants(process.pid)}:
        os.killpg(group, signal.SIGKILL)
    process.wait()
    killed = next(r for r in runs_of("tiny") if r.path.name != undisturbed.path.name)
    assert not killed.adapter.exists()
    pressroom("train", "recipe.yaml", *options)
    assert len(runs_of("tiny")) == 2
    assert losses(killed) == losses(undisturbed)
    assert len(metrics(killed)) == 120
    a, b = adapter(killed), adapter(undisturbed)
    assert all(bool((a[name] == b[name]).all()) for name in a)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR2, 140)]
)
def test_the_first_signal_saves_and_the_second_ends(
    make_recipe, home: Path, number: signal.Signals, code: int
) -> None:
    make_recipe()
    process = subprocess.Popen(
        [PRESSROOM, "train", "recipe.yaml", "optimizer.num_steps=100000"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # As from a terminal: where the tests run in the background, SIGINT is ignored.
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )
    wait_for(process, home, "*/metrics.jsonl")
    children = descendants(process.pid)[1:]
    assert len(children) >= 2
    if number == signal.SIGTERM:  # the ranks get no chance to hear the first
        for child in children:
            os.kill(child, signal.SIGSTOP)
        process.send_signal(number)
        time.sleep(0.2)
        for child in children:
            os.kill(child, signal.SIGCONT)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    _, alive = psutil.wait_procs(
        [psutil.Process(c) for c in children if psutil.pid_exists(c)], timeout=20
    )
    assert not alive
    (run,) = runs_of("tiny")
    if number == signal.SIGTERM:
        assert not run.preempted.exists()
        return
    assert "saving at the end of this step" in errors
    assert "train ended early, as asked; the same command goes on" in errors
    step = json.loads(run.preempted.read_text())["step"]
    newest = checkpoint.newest(run)
    assert newest
    assert newest.manifest.step == step == max(losses(run))
    assert not run.adapter.exists()


def test_two_ranks_by_hand_are_ddp_and_lose_as_one(make_recipe, home: Path) -> None:
    make_recipe()
    alone = train()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"}
    config = Path(local.__file__).parents[1] / "accelerate_configs" / "ddp.yaml"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    command += ["--num_processes", "2", "--num_machines", "1", "-m", "train.sft", "recipe.yaml"]
    command += ["name=tiny2"]
    prepare(Recipe.load("recipe.yaml", ["name=tiny2"]))
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr
    (run,) = runs_of("tiny2")
    facts = json.loads(run.environment.read_text())
    assert (facts["world_size"], facts["distributed_type"]) == (2, "MULTI_CPU")
    assert "4 global = 2 micro x 1 accumulation x 2 ranks" in done.stderr
    assert losses(run) == pytest.approx(losses(alone), abs=1e-4)


def test_a_killed_rank_is_told_as_killed(make_recipe, home: Path) -> None:
    make_recipe()
    process = subprocess.Popen(
        [PRESSROOM, "train", "recipe.yaml", "optimizer.num_steps=100000"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(process, home, "*/metrics.jsonl")
    rank = descendants(process.pid)[-1]
    assert "train.sft" in " ".join(psutil.Process(rank).cmdline())
    os.kill(rank, signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "train was killed or crashed without a word of its own" in errors
    assert "want of memory" in errors
    assert "Traceback" not in errors


def test_a_stage_says_why_it_is_done(make_recipe, home: Path) -> None:
    recipe = make_recipe()
    keys = stages.stage_keys(recipe)
    run = RunDir.create(recipe)
    assert stages.to_do(run, keys, "prep") == "no dataset yet"
    run.record_stage("train", keys.train)
    assert stages.to_do(run, keys, "train") == "not done yet"
    run.metrics.touch()
    assert stages.to_do(run, keys, "train") == "goes on"
    run.adapter.mkdir()
    weights = run.adapter / "adapter_model.safetensors"
    weights.write_bytes(b"12345678")
    run.record_stage("train", keys.train, 1.0)
    assert stages.to_do(run, keys, "train") is None
    weights.write_bytes(b"1234")
    assert stages.to_do(run, keys, "train") == (
        "missing or damaged: adapter/adapter_model.safetensors"
    )
    run.samples.touch()
    run.record_stage("generate", "another key", 1.0)
    assert stages.to_do(run, keys, "generate") == "the recipe or an input has changed"


@pytest.mark.parametrize(
    ("name", "num_gpus", "ranks"),
    [("demo", 0, 1), ("llama2_7b", 2, 1), ("llama2_13b", 4, 4), ("llama2_70b", 8, 8)],
)
def test_every_shipped_recipe_runs_dry(
    make_recipe, home: Path, tiny_model: Path, monkeypatch, name: str, num_gpus: int, ranks: int
) -> None:
    """Loaded, held against a model of Llama 2's positions, and its command made; nothing else."""
    make_recipe()
    config = json.loads((tiny_model / "config.json").read_text())
    shutil.copytree(tiny_model, home / "llama")
    (home / "llama" / "config.json").write_text(
        json.dumps({**config, "max_position_embeddings": 4096})
    )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(num_gpus))))
    options = ("model.base=./llama", "data.articles=[articles.jsonl]")
    output = pressroom("run", name, *options, "--dry-run")
    assert f"accumulation x {ranks} rank" in output
    assert "[1/5] prep: no dataset yet\n[2/5] train: not done yet" in output
    assert f"--num_processes {ranks} " in output
    assert not (home / "data").exists()
    assert not (home / "runs").exists()


@pytest.mark.parametrize("recipe_name", ["demo", "llama2_7b", "llama2_13b", "llama2_70b"])
@pytest.mark.parametrize("strategy", get_args(Strategy))
def test_every_strategy_loads_with_every_recipe(strategy: str, recipe_name: str) -> None:
    """Accelerate itself reads the command that trains, and takes the sharding from the YAML."""
    from accelerate.commands import launch

    overrides = [f"parallel.strategy={strategy}"]
    if recipe_name == "llama2_7b" and strategy != "ddp":
        with pytest.raises(UserError) as caught:
            Recipe.load(recipe_name, overrides)
        assert f"fp16 is not supported under {strategy}" in str(caught.value)
        assert f"cannot save its state under {strategy}" in str(caught.value)
        overrides += [*BF16, "optimizer.name=adamw_torch_fused"]
    overrides += ["batch.global_batch_size=16", "batch.micro_batch_size=1"]
    recipe = Recipe.load(recipe_name, overrides)
    command = train_command(
        recipe, RunDir(Path("runs/x")), Path("data/d"), Node(num_gpus=2, num_cpus=8)
    )
    launcher = command.index("accelerate.commands.launch") + 1
    arguments, _, _ = launch._validate_launch_command(
        launch.launch_command_parser().parse_args(command[launcher:])
    )
    assert (arguments.num_processes, arguments.num_machines) == (2, 1)
    assert arguments.mixed_precision == "no"
    assert arguments.gradient_accumulation_steps in (1, None)
    kinds = (arguments.multi_gpu, arguments.use_fsdp, arguments.use_deepspeed)
    assert [bool(kind) for kind in kinds] == [
        strategy == "ddp",
        strategy.startswith("fsdp"),
        strategy.startswith("zero"),
    ]
    offload = strategy.endswith("_offload")
    if strategy.startswith("fsdp"):
        assert str(arguments.fsdp_version) == "2"
        assert arguments.fsdp_auto_wrap_policy == "NO_WRAP"  # layers are divided as they are read
        assert str(arguments.fsdp_offload_params).lower() == str(offload).lower()
    if strategy.startswith("zero"):
        assert str(arguments.zero_stage) == strategy[4]
        assert arguments.deepspeed_multinode_launcher == "standard"
        assert arguments.offload_param_device == ("cpu" if offload else "none")
        assert arguments.offload_optimizer_device == ("cpu" if offload else "none")


def test_a_home_that_cannot_be_written_to_is_said_before_any_work(
    make_recipe, home: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_recipe()
    monkeypatch.setenv("PRESSROOM_HOME", str(home / "recipe.yaml"))
    for command in (("run", "recipe.yaml", "--dry-run"), ("prep", "recipe.yaml")):
        output = pressroom(*command, code=2)
        assert "recipe.yaml: not a folder that can be written to; PRESSROOM_HOME says" in output


def test_being_refused_is_no_failure_of_a_run_that_others_train(make_recipe) -> None:
    recipe = make_recipe()
    run, keys = RunDir.create(recipe), stage_keys(recipe)
    with lock(run.lock, "the run", shared=True):
        with pytest.raises(UserError), recorded(run, keys, "train"):
            raise UserError("another process trains here")
        assert not run.error.exists()
        assert "running" in run.report.read_text()
    with pytest.raises(UserError), recorded(run, keys, "train"):
        raise UserError("out of memory")
    assert "train: out of memory" in run.error.read_text()


def test_a_task_leaves_what_another_has_said(make_recipe) -> None:
    recipe = make_recipe()
    run, keys = RunDir.create(recipe), stage_keys(recipe)
    with pytest.raises(UserError), recorded(run, keys, "prep", 10):
        raise UserError("the disk is full")
    said = "prep, task 10: the disk is full\n"
    with recorded(run, keys, "prep", 1):  # begins later, and ends well
        assert run.error.read_text() == said
    with pytest.raises(UserError), recorded(run, keys, "prep", 0):
        raise UserError("the disk is full here too")
    assert run.error.read_text() == said
    with recorded(run, keys, "prep", 10):  # queued again by hand
        assert not run.error.exists()
    run.error.write_text(said)
    with recorded(run, keys, "prep"):  # a job alone
        assert not run.error.exists()


def test_an_error_is_kept_in_the_words_of_the_stage(make_recipe, home: Path) -> None:
    make_recipe()
    (home / "articles.jsonl").write_text("no article\n")
    output = pressroom("run", "recipe.yaml", code=2)
    assert "its message stands above" in output
    (run,) = runs_of("tiny")
    assert run.error.read_text().startswith("prep: articles.jsonl: not one good article")
