"""Before anything is queued: each mistake gives its one message, and all of them come together.

SLURM's tools are scripts that print what a real SLURM 22.05.8 said, of a cluster with several
kinds of nodes.
"""

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from test_recipe import STRATEGIES

from data_prep.prepare import prepare
from launch import accelerate_files, capacity, checks, partitions
from launch.partitions import gpus_in, limit_minutes, parse
from pressroom import quantized_base
from pressroom.cluster import Cluster
from pressroom.recipe import Recipe

SINFO = """\
train*|up|7-00:00:00|1-infinite|1|64|512000|gpu:h100:8(S:0-1)|hbm,ib
train*|up|7-00:00:00|1-infinite|1|64|512000|gpu:h100:8(S:0-1)|(null)
gpu|up|2-12:00:00|1-infinite|1|64|512000|gpu:h100:8(S:0-1)|hbm,ib
gpu|up|2-12:00:00|1-infinite|1|64|512000|gpu:h100:8(S:0-1)|(null)
gpu|up|2-12:00:00|1-infinite|4|32|256000|gpu:a100:4,gpu:t4:2,lscratch:2T|a100,ib,amd
gpu|up|2-12:00:00|1-infinite|2|32|128000|gpu:4|old
cpu|up|infinite|1-4|10|128|515000|(null)|amd,ib
debug|up|30:00|1-infinite|1|64|512000|gpu:h100:8(S:0-1)|hbm,ib
debug|up|30:00|1-infinite|1|64|512000|gpu:h100:8(S:0-1)|(null)
debug|up|30:00|1-infinite|1|128|515000|(null)|amd,ib
old|down|1-00:00:00|1-infinite|2|32|128000|gpu:4|old
going|drain|1:30:00|1-infinite|2|32|128000|gpu:4|old
gone|inactive|infinite|1-infinite|2|32|128000|gpu:4|old
empty|up|infinite|1-infinite|0|0|0|(null)|(null)
"""
CLUSTER = """\
partition: train
gpu: h100
gpus_per_node: 8
nodes: 2
time_limit: 12:00:00
"""
Answer = Callable[..., None]


@pytest.fixture
def answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Answer:
    """A login node whose tools say what they are told to."""
    tools = tmp_path / "tools"
    tools.mkdir()
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")

    def say(tool: str, out: str = "", err: str = "", code: int = 0) -> None:
        (tools / f"{tool}.out").write_text(out)
        (tools / f"{tool}.err").write_text(err)
        script = tools / tool
        script.write_text(
            f"#!/bin/sh\necho \"$SINFO_PARTITION $@\" > '{script}.asked'\n"
            f"cat '{script}.out'\ncat '{script}.err' >&2\nexit {code}\n"
        )
        script.chmod(0o755)

    for tool in ("sbatch", "srun", "scontrol"):
        say(tool)
    say("sinfo", SINFO)
    return say


@pytest.fixture
def check(answer: Answer, make_recipe, home: Path) -> Callable[..., list[str]]:
    """The problems of a recipe's sections on the cluster, with overrides of either."""
    batch = {"global_batch_size": 16, "micro_batch_size": 1}

    def problems(
        *overrides: str, recipe: Recipe | None = None, needs_dataset: bool = False, **sections
    ) -> list[str]:
        (home / "c.yaml").write_text(CLUSTER)
        cluster = Cluster.load(home / "c.yaml", overrides)
        recipe = recipe or make_recipe(**{"batch": batch, **sections})
        return checks.problems(recipe, cluster, "c.yaml", needs_dataset=needs_dataset)

    return problems


def test_what_a_real_slurm_says() -> None:
    found = parse(SINFO)
    assert list(found)[:4] == ["train", "gpu", "cpu", "debug"]
    assert [group.count for group in found["gpu"].nodes] == [1, 1, 4, 2]
    hopper, _, ampere, old = found["gpu"].nodes
    assert (hopper.cpus, hopper.memory_gib, hopper.gpus) == (64, 500, {"h100": 8})
    assert (ampere.gpus, ampere.features) == ({"a100": 4, "t4": 2}, {"a100", "ib", "amd"})
    assert (old.num_gpus(None), old.num_gpus("h100"), ampere.num_gpus(None)) == (4, 0, 6)
    assert (found["cpu"].most_nodes, found["gpu"].most_nodes) == (4, math.inf)
    assert [found[n].state for n in ("old", "going", "gone")] == ["down", "drain", "inactive"]
    assert found["empty"].nodes == ()


CONFIG = """\
Configuration data as of 2026-11-22T13:30:41
MaxArraySize            = 1001
MaxJobCount             = 10000
SchedulerParameters     = batch_sched_delay=0,{more}bf_interval=1
"""


def test_an_array_of_more_tasks_than_slurm_takes(check, answer: Answer) -> None:
    assert check("cpu_jobs.tasks=100000") == []  # SLURM does not say
    answer("scontrol", CONFIG.format(more=""))
    assert check("cpu_jobs.tasks=1001") == []  # 0 to 1000: a real one takes it, and no more
    more = "cpu_jobs.tasks: {} is more than an array may have here: {}"
    assert check("cpu_jobs.tasks=1002") == ["c.yaml: " + more.format(1002, 1001)]
    answer("scontrol", CONFIG.format(more="max_array_tasks=8,"))
    told = check("cpu_jobs.tasks=9", "cpu_jobs.cpus=65")
    assert told[1:] == ["c.yaml: " + more.format(9, 8)]
    answer("scontrol", "MaxArraySize = 0\n")
    assert check("cpu_jobs.tasks=2") == ["c.yaml: " + more.format(2, 1)]
    assert check() == []


def test_other_ways_of_slurm_to_write_it() -> None:
    assert gpus_in("gpu:tesla:2(IDX:0-1),gpu:tesla:2,nic:1") == {"tesla": 4}
    assert gpus_in("gpu:a100_1g.5gb:7,gpu") == {"a100_1g.5gb": 7, "": 1}
    assert gpus_in("gpu:h100:8(S:0,2-3),craynetwork:4") == {"h100": 8}
    assert [limit_minutes(t) for t in ("infinite", "n/a", "5:00")] == [math.inf, math.inf, 5]
    (group,) = parse("CLUSTER: a\nx*|up|1:00:00|2|3|64+|128000+|gpu:8|(null)\n")["x"].nodes
    assert (group.cpus, group.memory_gib) == (64, 125)


def test_a_cluster_that_fits_has_no_problem(check, answer: Answer, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("SINFO_PARTITION", "cpu")
    answer("sbatch", err="sbatch: Job 8 to start at 2026-11-22T10:16:02 in partition train")
    assert check(f"shared=[{tmp_path.parent.parent}]") == []
    assert check("constraint=hbm&ib", "nodes=1", "cpus_per_node=64", "memory_gib=500") == []
    asked = (tmp_path / "tools" / "sbatch.asked").read_text()
    assert "--test-only --partition=train --constraint=hbm&ib --nodes=1 --time=12:00:00" in asked
    assert "--gpus-per-node=8 --wrap true" in asked
    assert (tmp_path / "tools" / "sinfo.asked").read_text().startswith(" --noheader --all --exact")
    big = ("partition=gpu", "gpu=a100-80", "gpu_type=a100", "gpus_per_node=4", "nodes=4")
    assert check(*big, 'constraint="[ib|old]"') == []
    assert check("partition=train,debug", "time_limit=0:30:00", "cpu_jobs.partition=cpu") == []
    assert check("partition=empty", "cpu_jobs.cpus=999") == []  # nodes that SLURM does not show


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("partition=trian", "partition: trian: no such partition; did you mean train?"),
        (
            "partition=xyz",
            "partition: xyz: no such partition (cpu, debug, empty, going, gone, gpu, old, train)",
        ),
        (
            "partition=old gpus_per_node=4",
            "partition: old: no job starts there: its state is down",
        ),
        (
            "cpu_jobs.partition=cpus",
            "cpu_jobs.partition: cpus: no such partition; did you mean cpu?",
        ),
        (
            "cpu_jobs.partition=gone",
            "cpu_jobs.partition: gone: no job starts there: its state is inactive",
        ),
        ("time_limit=8-00:00:00", "time_limit: 8-00:00:00 is more than train gives: 7-00:00:00"),
        (
            "cpu_jobs.partition=debug",
            "cpu_jobs.time_limit: 8:00:00 is more than debug gives: 30:00",
        ),
        ("cpu_jobs.cpus=65", "cpu_jobs.cpus: 65 is more than a node of train has: 64"),
        (
            "cpu_jobs.memory_gib=501",
            "cpu_jobs.memory_gib: 501 is more than a node of train has: 500",
        ),
        (
            "constraint=hmb",
            "constraint: hmb: no such feature of a node in train; did you mean hbm?",
        ),
        (
            "constraint=ib&a100 partition=gpu gpu_type=h100",
            "gpu_type: h100: no such kind of GPU in gpu; did you mean a100?",
        ),
        ("nodes=4 gpus_per_node=4", "nodes: 4 is more than train has of such nodes: 2"),
        (
            "partition=gpu gpu_type=h100 nodes=4 gpus_per_node=4 constraint=hbm|old",
            "nodes: 4 is more than gpu has of such nodes: 1",
        ),
        ("nodes=2 constraint=hbm", "nodes: 2 is more than train has of such nodes: 1"),
        (
            "gpus_per_node=0 partition=cpu nodes=8",
            "nodes: 8 is more than cpu gives one job: 4",
        ),
        ("gpus_per_node=16 nodes=1", "gpus_per_node: 16 is more than a node of train has: 8"),
        ("partition=gpu", "gpu_type: is required: gpu has a100, h100, t4"),
        (
            "partition=gpu gpu_type=H1000",
            "gpu_type: H1000: no such kind of GPU in gpu; did you mean h100?",
        ),
        ("gpu=a100-80", "gpu: a100-80, and SLURM calls the GPUs of train h100"),
        ("cpus_per_node=65", "cpus_per_node: 65 is more than a node of train has: 64"),
        ("memory_gib=501", "memory_gib: 501 is more than a node of train has: 500"),
    ],
)
def test_each_wrong_key_of_a_cluster_is_one_message(check, overrides: str, message: str) -> None:
    assert check(*overrides.split()) == [f"c.yaml: {message}"]


def test_no_node_matches_all_of_a_constraint(check) -> None:
    assert check("partition=gpu", "gpu_type=h100", "constraint=hbm&old") == [
        "c.yaml: constraint: hbm&old: no node of gpu has all of it"
    ]


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        (
            "Invalid account or account/partition combination specified",
            "c.yaml: account: newsroom: SLURM refuses such a job: "
            "Invalid account or account/partition combination specified",
        ),
        (
            "Invalid qos specification",
            "c.yaml: qos: high: SLURM refuses such a job: Invalid qos specification",
        ),
        (
            "User's group not permitted to use this partition",
            "c.yaml: partition: train: SLURM refuses such a job: "
            "User's group not permitted to use this partition",
        ),
        ("Requested node configuration is not available", None),  # its nodes are down just now
    ],
)
def test_what_slurm_itself_refuses(check, answer: Answer, said: str, problem: str | None) -> None:
    answer("sbatch", err=f"sbatch: note\nallocation failure: {said}\n", code=1)
    assert check("account=newsroom", "qos=high") == ([problem] if problem else [])


def test_a_machine_without_slurm(check, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert check() == [
        "sbatch, srun, scontrol, sinfo: no such command: this is no login node of a SLURM cluster"
    ]


def test_a_slurm_that_does_not_answer(check, answer: Answer, monkeypatch) -> None:
    away = "slurm_load_partitions: Unable to contact slurm controller (connect failure)"
    answer("sinfo", err=away, code=1)
    assert check() == [f"sinfo: SLURM does not answer: {away}"]
    answer("sinfo", code=3)
    assert check() == ["sinfo: SLURM does not answer: exit code 3"]
    monkeypatch.setattr(partitions, "SECONDS", 0.2)
    monkeypatch.setattr(capacity, "TOOLS", ())
    answer("sinfo")
    tool = Path(shutil.which("sinfo") or "")
    tool.write_text("#!/bin/sh\nexec sleep 20\n")
    (told,) = check()
    assert told.startswith("sinfo: SLURM does not answer within 0.2 s; `scontrol ping`")


def test_a_model_that_is_not_here(check, make_recipe, home: Path) -> None:
    assert check(model={"base": "lama"}) == [
        f"model.base: lama: no such folder (looked for {home / 'lama'})"
    ]
    (told,) = check(model={"base": "newsroom/llama", "revision": "v2"})
    assert told == (
        "model.base: newsroom/llama: it is not whole in this machine's cache, and jobs bring "
        "nothing: `pressroom download newsroom/llama@v2` does"
    )


def test_a_recipe_that_its_model_cannot_do(check) -> None:
    assert check(sequence_length=8192, lora={"target_modules": ["q_porj"]}) == [
        "sequence_length: 8,192 tokens, and the model knows positions up to 2,048\n"
        "lora.target_modules: q_porj is no linear layer of a decoder layer; did you mean q_proj?"
    ]


@pytest.mark.parametrize("micro", [2, "auto"])
def test_a_batch_that_does_not_divide_over_the_cluster(check, micro: int | str) -> None:
    (told,) = check(batch={"global_batch_size": 24, "micro_batch_size": micro})
    assert told.startswith("batch.global_batch_size: 24 rows")
    if micro == 2:
        assert told.endswith("over 16 ranks; world sizes that fit: 1, 2, 3, 4, 6, 12")


def test_articles_that_are_not_here(check, home: Path) -> None:
    assert check(data={"articles": ["article.jsonl"]}) == [
        f"data.articles: article.jsonl: no such file (in {home})"
    ]


def test_a_dataset_is_there_and_matches(check, make_recipe, home: Path) -> None:
    batch = {"global_batch_size": 16, "micro_batch_size": 1}
    recipe = make_recipe(batch=batch)
    (told,) = check(recipe=recipe, needs_dataset=True)
    assert told.endswith("no such dataset; make it with `pressroom prep`")
    prepare(recipe)
    assert check(recipe=recipe, needs_dataset=True) == []
    (told,) = check(sequence_length=64, needs_dataset=True)
    assert "no such dataset" in told
    assert "sequence_length: the dataset has 128, the recipe 64" in told


def test_a_damaged_quantized_base(check, make_recipe, tiny_model: Path) -> None:
    recipe = make_recipe(batch={"global_batch_size": 16, "micro_batch_size": 1})
    place = quantized_base.Codes(tiny_model, recipe.quantization, "fp32").place
    place.mkdir(parents=True)
    quantized_base.manifest(place).write_text(json.dumps({"shards": {"a": {"bytes": 3}}}))
    assert check(recipe=recipe) == [f"{place}: {quantized_base.MEND}:\n  a: missing"]


@pytest.fixture
def big_model(tiny_model: Path, home: Path) -> Path:
    """A folder that says it is Llama 2 70B."""
    folder = home / "big"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80}
    config |= {"num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128}
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 32000}))
    return folder


def test_a_plan_that_does_not_fit_names_what_would(check, big_model: Path) -> None:
    sections = {
        "model": {"base": str(big_model)},
        "sequence_length": 2048,
        "quantization": {"compute_dtype": "bfloat16"},
        "memory": {"precision": "bf16"},
        "speed": "off",  # lean layers would keep less
    }
    batch = {"global_batch_size": 64, "micro_batch_size": 4}
    (told,) = check(**sections, batch=batch)
    assert told.startswith("the plan does not fit 2x8xh100: the peak is ")
    assert "what would fit, the cheapest change first:\n  batch.micro_batch_size=" in told
    autos = {"batch": {**batch, "micro_batch_size": "auto"}, "parallel": {"strategy": "auto"}}
    assert check(**sections, **autos) == []
    cpus = ("gpus_per_node=0", "partition=cpu", "nodes=4", "memory_gib=20")
    assert check(*cpus, **sections, batch=batch) == []


def test_what_the_nodes_would_not_see(check, tiny_model: Path, home: Path, tmp_path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    inside = f"shared=[{home}, {tiny_model.parent}]"
    assert check(inside) == []
    assert check(f"shared=[{shared}, {tiny_model}]") == [
        f"c.yaml: shared: {home} (home: PRESSROOM_HOME, or the working directory) lies below none "
        f"of {shared}, {tiny_model}: the nodes would not see it"
    ]


def test_links_out_of_a_shared_folder(check, tiny_model, home: Path, tmp_path_factory) -> None:
    disk = tmp_path_factory.mktemp("local")
    shutil.copytree(tiny_model, disk / "llama")
    (disk / "runs").mkdir()
    (home / "llama").symlink_to(disk / "llama")
    (home / "runs").symlink_to(disk / "runs")
    assert check(f"shared=[{home}]", model={"base": "llama"}) == [
        f"c.yaml: shared: {disk / name} lies below none of {home}: the nodes would not see it"
        for name in ("runs (runs in home)", "llama (model.base)")
    ]


def test_a_shared_folder_that_is_not_here(check, home: Path, tiny_model: Path) -> None:
    (home / "shared").mkdir()
    told = check(f"shared=[{home}/shred, {home}, {tiny_model}]")
    assert told == [
        f"c.yaml: shared: {home}/shred: no such folder here; did you mean {home}/shared?"
    ]


def test_a_home_that_cannot_be_written(check, make_recipe, home: Path, monkeypatch) -> None:
    recipe = make_recipe(batch={"global_batch_size": 16, "micro_batch_size": 1})
    monkeypatch.setenv("PRESSROOM_HOME", str(home / "nowhere"))
    told = check(recipe=recipe)
    assert told[0].startswith(f"{home}/nowhere: not a folder that can be written to")


def test_a_tracker_that_is_not_installed(check, monkeypatch) -> None:
    monkeypatch.setattr("pressroom.train_sections.find_spec", lambda name: None)
    (told,) = check(tracking={"trackers": ["wandb"]})
    assert told.startswith("tracking.trackers: wandb not installed")


def test_what_only_gpus_can_do_is_a_warning_on_cpus(check, caplog) -> None:
    cpus = ("gpus_per_node=0", "partition=cpu", "nodes=4")
    assert check(*cpus, parallel={"strategy": "fsdp"}) == []
    assert "c.yaml: gpus_per_node is 0, and parallel.strategy: fsdp shards over GPUs" in caplog.text


def test_a_python_that_may_be_on_the_nodes_alone_is_a_warning(check, caplog, home, tiny_model):
    assert check("python=/opt/other/python") == []
    assert "c.yaml: python: /opt/other/python: no such file here" in caplog.text
    assert check("container=apptainr exec x.sif", "python=/opt/x") == []
    assert "c.yaml: container: there is no apptainr here" in caplog.text
    assert check(f"shared=[{home}, {tiny_model}]") == []
    assert "c.yaml: python: the one that submits is in" in caplog.text


def test_every_shipped_accelerate_config_is_its_strategy() -> None:
    folder = Path(accelerate_files.__file__).parents[1] / "accelerate_configs"
    assert (
        set(accelerate_files.SAYS)
        == {"single", *STRATEGIES}
        == {path.stem for path in folder.glob("*.yaml")}
    )
    for name in accelerate_files.SAYS:
        assert accelerate_files.problems(folder / f"{name}.yaml", name) == []


@pytest.mark.parametrize(
    ("strategy", "edit", "message"),
    [
        (
            "fsdp",
            ("distributed_type: FSDP", "distributed_type: MULTI_GPU"),
            'fsdp.yaml:4: distributed_type: must be "FSDP" for fsdp, not "MULTI_GPU"',
        ),
        (
            "ddp",
            ('mixed_precision: "no"', "mixed_precision: bf16"),
            'ddp.yaml:7: mixed_precision: must be "no" for ddp, not "bf16"',
        ),
        (
            "ddp",
            ("gpu_ids: all", "gpu_ids: all\nnum_processes: 8"),
            "ddp.yaml:7: num_processes: comes from the launcher: leave it out",
        ),
        (
            "zero2",
            ("zero_stage: 2", "zero_stage: 2\n  gradient_accumulation_steps: 4"),
            "zero2.yaml:9: deepspeed_config.gradient_accumulation_steps: follows from the "
            "recipe's batch: leave it out",
        ),
        (
            "zero3",
            ("zero_stage: 3", "zero_stage: 3\n  gradient_clipping: 1.0"),
            "zero3.yaml:9: deepspeed_config.gradient_clipping: is the recipe's "
            "optimizer.max_grad_norm: leave it out",
        ),
        (
            "fsdp_offload",
            ("fsdp_offload_params: true", ""),
            "fsdp_offload.yaml:6: fsdp_config.fsdp_offload_params: must be true for fsdp_offload, "
            "not missing",
        ),
        ("zero2", ("zero_stage: 2", "zero_stage: [2"), "zero2.yaml:9: not YAML: "),
    ],
)
def test_an_edited_accelerate_config(
    check, tmp_path: Path, monkeypatch, strategy: str, edit: tuple[str, str], message: str
) -> None:
    folder = Path(accelerate_files.__file__).parents[1] / "accelerate_configs"
    text = (folder / f"{strategy}.yaml").read_text()
    assert edit[0] in text
    copy = tmp_path / f"{strategy}.yaml"
    copy.write_text(text.replace(*edit))
    monkeypatch.setattr(checks.resources, "files", lambda name: tmp_path)
    (told,) = check(parallel={"strategy": strategy})
    assert told.removeprefix(f"{tmp_path}/").startswith(message)
    yaml.safe_load(text)


def test_one_rank_takes_the_file_of_one_rank(check, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(checks.resources, "files", lambda name: tmp_path)
    (told,) = check("nodes=1", "gpus_per_node=1")
    assert told == f"{tmp_path}/single.yaml: No such file or directory"


def test_all_of_it_is_told_together(check, answer: Answer, home: Path, monkeypatch) -> None:
    monkeypatch.setattr("pressroom.train_sections.find_spec", lambda name: None)
    told = check(
        *("partition=trian", "cpu_jobs.partition=cup", f"shared=[{home / 'x'}]"),
        model={"base": "lama"},
        data={"articles": ["none.jsonl"]},
        batch={"global_batch_size": 24, "micro_batch_size": 2},
        tracking={"trackers": ["mlflow"]},
    )
    starts = (
        "c.yaml: partition: trian",
        "c.yaml: cpu_jobs.partition: cup",
        "tracking.trackers: mlflow",
        "model.base: lama",
        "data.articles: none.jsonl",
        f"c.yaml: shared: {home / 'x'}: no such folder",
        f"c.yaml: shared: {home} (home",
        "batch.global_batch_size: 24",
    )
    assert len(told) == len(starts)
    assert all(line.startswith(start) for line, start in zip(told, starts, strict=True))


def test_nothing_heavy_is_imported_and_nothing_is_written(check, home: Path) -> None:
    check()
    before = sorted(home.rglob("*"))
    code = (
        "import sys\nfrom pathlib import Path\nfrom launch.checks import problems\n"
        "from pressroom.cluster import Cluster\nfrom pressroom.recipe import Recipe\n"
        "recipe, cluster = Recipe.load('recipe.yaml'), Cluster.load(Path('c.yaml'))\n"
        "assert problems(recipe, cluster, 'c.yaml', needs_dataset=False) == []\n"
        "heavy = {'torch', 'transformers', 'datasets', 'accelerate', 'trl', 'huggingface_hub'}\n"
        "assert heavy.isdisjoint(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert sorted(home.rglob("*")) == before
