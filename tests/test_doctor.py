"""The doctor: findings on invented machines, facts of this one, and what the command shows."""

import json
import os
import shutil
import subprocess
import sys
import threading
import warnings
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest

from pressroom import gpus
from pressroom.geometry import SIZES
from pressroom.gpus import Driver, ask_driver
from pressroom.recipe import Recipe
from train.doctor.command import findings, show
from train.doctor.fitness import Finding
from train.doctor.gpu_fitness import NF4_TOLERANCE
from train.doctor.inputs import Inputs, look
from train.doctor.machine import Folder, Library, Machine, probe, shadows
from train.doctor.stack import Gpu, Stack, probe_stack

H100 = Gpu(name="NVIDIA H100 80GB HBM3", capability=(9, 0), memory_gib=79.6, free_gib=79.1)
V100 = Gpu(name="Tesla V100-SXM2-16GB", capability=(7, 0), memory_gib=15.8, free_gib=15.4)
ARCHS = ("sm_70", "sm_75", "sm_80", "sm_86", "sm_90")


def stack(*cards: Gpu, **facts: object) -> Stack:
    """A sound stack built for CUDA 12.8, with some GPUs."""
    devices = ("cpu", *(f"cuda:{i}" for i in range(len(cards))))
    sound = {
        "torch": "2.10.0+cu128",
        "torch_cuda": "12.8",
        "torch_archs": ARCHS,
        "gpus": cards,
        "nccl": True,
        "bitsandbytes": "libbitsandbytes_cuda128.so",
        "nf4": dict.fromkeys(devices, 0.1513),
    }
    return Stack(**{**sound, **facts})


def machine(*cards: Gpu, **facts: object) -> Machine:
    """A sound machine with some GPUs; facts replace its own."""
    names = tuple(card.name for card in cards)
    sound = {
        "python": Library(name="Python", version="3.12.3", wanted=">=3.11"),
        "system": "Linux x86_64",
        "libraries": (Library(name="trl", version="1.16.0", wanted=">=1.16,<1.17"),),
        "driver": Driver(version="570.86.15", cuda="12.8", gpus=names) if cards else None,
        "stack": stack(*cards),
        "counted_gpus": len(cards),
        "visible": None,
        "bf16_cpu": True,
        "memory_gib": 1000.0,
        "shm_gib": 500.0,
        "open_files": 65536,
        "home": Folder(path="/scratch/me", free_gib=2000.0, disk=1, writable=True),
        "hub_cache": Folder(path="/scratch/hub", free_gib=2000.0, disk=1, writable=True),
        "temporary": Folder(path="/tmp", free_gib=100.0, disk=2, writable=True),
        "build_lacks": (),
        "slow": (),
        "ranks": (),
        "accelerate": (),
        "bnb_cuda": None,
        "offline": False,
        "shadows": (),
        "shadows_here": (),
    }
    return Machine(**{**sound, **facts})


def not_ok(found: list[Finding]) -> list[tuple[str, str, str]]:
    """Level, subject and text of what is not well, advice behind it."""
    return [(f.level, f.subject, f"{f.what} -> {f.advice}") for f in found if f.level != "ok"]


def the_one(found: list[Finding]) -> tuple[str, str, str]:
    """The only finding that is not ok; all others have no advice."""
    (one,) = not_ok(found)
    assert all(not f.advice for f in found if f.level == "ok")
    return one


@pytest.fixture
def recipe(make_recipe) -> Recipe:
    """bf16 on NF4, its model and articles in place."""
    return make_recipe(
        quantization={"compute_dtype": "bfloat16", "storage_dtype": "bfloat16"},
        memory={"precision": "bf16"},
        batch={"global_batch_size": 8, "micro_batch_size": 1},
    )


def with_override(*overrides: str) -> Recipe:
    return Recipe.load("recipe.yaml", overrides)


def test_a_node_of_h100_is_fit(recipe: Recipe) -> None:
    found = findings(machine(*[H100] * 8), recipe, Inputs(geometry=SIZES["70b"]))
    assert not_ok(found) == []
    assert "\x1b[32m✓" in show(found, recipe, colour=True)
    told = show(found, recipe, colour=False)
    assert "8 x NVIDIA H100 80GB HBM3, 80 GiB, compute capability 9.0, bf16" in told
    assert "8 global = 1 micro x 1 accumulation x 8 ranks" in told
    assert told.endswith("\n\nfit for tiny")


def test_a_machine_without_gpu_trains_on_its_cpu() -> None:
    facts = machine(stack=stack(torch="2.13.0+cpu", torch_cuda=None))
    level, _, what = the_one(findings(facts))
    assert level == "note"
    assert what.startswith("none: training runs on the CPU")


@pytest.mark.parametrize(
    ("facts", "level", "told"),
    [
        (
            {"stack": stack(torch="2.13.0+cpu", torch_cuda=None)},
            "problem",
            "is a CPU build, and the driver lists 2 GPUs -> pip uninstall torch, then install a "
            "build for CUDA 12.8 or older",
        ),
        (
            {"stack": stack(torch_cuda="13.0")},
            "problem",
            "the driver runs CUDA 12.8, torch is built for 13.0 -> update the driver",
        ),
        (
            {"stack": stack(), "driver": Driver(version="550", cuda="12.4", gpus=("H100",) * 2)},
            "problem",
            "torch sees none: CUDA finds none",  # 12.4 runs what was built for 12.8
        ),
        (
            {"stack": stack(torch_cuda=None), "driver": None, "visible": "0", "counted_gpus": 1},
            "problem",
            "1 are there (CUDA_VISIBLE_DEVICES=0), torch sees none: CUDA finds none",
        ),
        (
            {"stack": stack(broken={"cuda": "Error 802: system not yet initialized"})},
            "problem",
            "2 are there, torch sees none: Error 802: system not yet initialized",
        ),
        (
            {"stack": stack(), "visible": "", "counted_gpus": 0},
            "note",
            "all 2 are hidden (CUDA_VISIBLE_DEVICES=): training runs on the CPU",
        ),
        (
            {"visible": "0,1,2,3", "counted_gpus": 4},
            "problem",
            "counts 4 (CUDA_VISIBLE_DEVICES=0,1,2,3), torch sees 2 -> "
            "export CUDA_VISIBLE_DEVICES=0,1",
        ),
        (
            {"driver": None, "counted_gpus": 0},
            "problem",
            "counts 0, torch sees 2 -> export CUDA_VISIBLE_DEVICES=0,1",
        ),
    ],
)
def test_gpus_that_are_there_and_not_seen(facts: dict, level: str, told: str) -> None:
    found_level, subject, what = the_one(findings(machine(H100, H100, **facts)))
    assert (found_level, subject) == (level, "GPU")
    assert told in what


def test_an_older_minor_version_of_the_driver_is_fine() -> None:
    driver = Driver(version="550.54.14", cuda="12.4", gpus=(H100.name,))
    assert not_ok(findings(machine(H100, driver=driver))) == []


def test_a_driver_that_does_not_answer() -> None:
    reason = "Failed to initialize NVML: Driver/library version mismatch"
    facts = machine(driver=Driver(error=reason), stack=stack())
    assert ("problem", "driver") in [item[:2] for item in not_ok(findings(facts))]
    facts = machine(driver=Driver(error="No devices were found"), stack=stack())
    assert the_one(findings(facts))[:2] == ("note", "GPU")


def test_bf16_on_a_v100_says_what_to_write_and_that_loads(recipe: Recipe) -> None:
    for strategy in ("ddp", "fsdp"):
        asked = with_override(f"parallel.strategy={strategy}")
        level, key, what = the_one(findings(machine(V100), asked, Inputs(geometry=SIZES["7b"])))
        assert (level, key) == ("problem", "memory.precision")
        assert "bf16, which a Tesla V100-SXM2-16GB does not have" in what
        overrides = what.partition(" -> ")[2].split()
        kept = [] if "parallel.strategy=ddp" in overrides else [f"parallel.strategy={strategy}"]
        mended = with_override(*kept, *overrides)
        assert mended.memory.precision == "fp16"
        assert not_ok(findings(machine(V100), mended, Inputs(geometry=SIZES["7b"]))) == []


def test_a_gpu_that_torch_has_no_kernels_for() -> None:
    facts = machine(V100, stack=stack(V100, torch_archs=("sm_75", "sm_80", "compute_120")))
    level, _, what = the_one(findings(facts))
    assert level == "problem"
    assert (
        "no bf16; torch has no kernels for it -> torch 2.10.0+cu128 has kernels for sm_75" in what
    )


def test_gpus_in_use_of_two_kinds_and_a_slice() -> None:
    busy = replace(H100, free_gib=30.0)
    told = not_ok(findings(machine(busy, V100, stack=stack(busy, V100, peers=False))))
    assert [level for level, _, _ in told] == ["note"] * 3
    text = "\n".join(what for _, _, what in told)
    assert "GPU 0: 50 of 80 GiB are held already" in text
    assert "several kinds" in text
    assert "exchange through the host" in text
    mig = replace(H100, name="NVIDIA A100-SXM4-40GB MIG 1g.5gb")
    assert "MIG slice" in the_one(findings(machine(mig)))[2]


def test_two_gpus_without_nccl() -> None:
    facts = machine(H100, H100, stack=stack(H100, H100, nccl=False))
    assert the_one(findings(facts))[:2] == ("problem", "NCCL")


def test_a_native_library_that_does_not_match_torch() -> None:
    missing = "No compatible CUDA binary found at libbitsandbytes_cuda140.so"
    broken = stack(H100, torch_cuda="14.0", bitsandbytes=None, broken={"bitsandbytes": missing})
    facts = machine(H100, stack=broken)
    level, subject, what = the_one(findings(facts))
    assert (level, subject) == ("problem", "bitsandbytes")
    assert missing in what
    assert "`python -m bitsandbytes` lists" in what
    (_, _, what) = the_one(findings(replace(facts, bnb_cuda="140")))
    assert what.endswith("unset BNB_CUDA_VERSION, which is 140")


def test_nf4_that_comes_back_wrong() -> None:
    for bad in ({"nf4": {"cpu": 0.15, "cuda:0": 1.0}}, {"nf4": {"cuda:0": float("nan")}}):
        assert (
            "NF4 fails on cuda:0" in the_one(findings(machine(H100, stack=stack(H100, **bad))))[2]
        )
    failed = stack(H100, broken={"NF4 on cuda:0": "no kernel image is available"})
    told = the_one(findings(machine(H100, stack=failed)))[2]
    assert "NF4 fails on cuda:0: no kernel image is available" in told


def test_a_package_that_makes_bitsandbytes_fetch_code() -> None:
    facts = machine(driver=None, stack=stack(fetches=True, bitsandbytes=None, nf4={}))
    told = [item for item in not_ok(findings(facts)) if item[0] == "problem"]
    assert [subject for _, subject, _ in told] == ["bitsandbytes"]
    assert "pip uninstall kernels, or set HF_HUB_OFFLINE=1" in told[0][2]


def test_a_broken_torch_is_one_problem() -> None:
    facts = machine(
        stack=Stack(broken={"torch": "libcudart.so.12: cannot open shared object file"})
    )
    assert the_one(findings(facts))[:2] == ("problem", "torch")


def test_versions_out_of_range_and_missing() -> None:
    libraries = (
        Library(name="transformers", version="4.46.0", wanted=">=5.23,<5.24"),
        Library(name="peft", version=None, wanted=">=0.21.2,<0.22"),
        Library(name="torch", version="2.13.0+cpu", wanted=">=2.8,<2.14"),
        Library(name="torch", version="2.9.0a0+145a3a7bda.nv25.10", wanted=">=2.8,<2.14"),
    )
    told = not_ok(findings(machine(H100, libraries=libraries)))
    assert told == [
        (
            "problem",
            "transformers",
            '4.46.0 is not >=5.23,<5.24 -> pip install "transformers>=5.23,<5.24"',
        ),
        ("problem", "peft", 'not installed -> pip install "peft>=0.21.2,<0.22"'),
    ]
    old = Library(name="Python", version="3.10.4", wanted=">=3.11")
    assert the_one(findings(machine(H100, python=old)))[:2] == ("problem", "Python")
    assert the_one(findings(machine(H100, libraries=())))[0] == "note"


def test_no_disk(recipe: Recipe) -> None:
    small = Folder(path="/scratch/me", free_gib=20.0, disk=1, writable=True)
    other = Folder(path="/scratch/hub", free_gib=20.0, disk=1, writable=True)
    inputs = Inputs(geometry=SIZES["7b"])
    assert not_ok(findings(machine(H100, home=small), recipe, inputs)) == []
    # The download comes to the same disk: 12.6 GiB twice.
    asked = with_override("model.base=meta-llama/Llama-2-7b-hf")
    inputs = Inputs(geometry=SIZES["7b"], absent={"meta-llama/Llama-2-7b-hf": ""})
    found = not_ok(findings(machine(H100, home=small, hub_cache=other), asked, inputs))
    (room,) = [what for level, subject, what in found if subject == "room" and level == "problem"]
    assert "of 20.0 GiB in /scratch/me: checkpoints" in room
    assert "the merged model 12.6, the download 12.6" in room
    elsewhere = replace(other, disk=3)
    found = not_ok(findings(machine(H100, home=small, hub_cache=elsewhere), asked, inputs))
    assert [subject for _, subject, _ in found] == ["model.base"]


def test_folders_that_are_full_or_closed() -> None:
    closed = Folder(path="/data", free_gib=100.0, disk=9, writable=False)
    full = Folder(path="/data", free_gib=0.2, disk=9, writable=True)
    assert the_one(findings(machine(H100, home=closed)))[0] == "problem"
    assert the_one(findings(machine(H100, home=full)))[0] == "problem"
    assert the_one(findings(machine(H100, hub_cache=closed)))[0] == "note"
    assert "TMPDIR" in the_one(findings(machine(H100, temporary=full)))[2]


def test_a_container_as_docker_makes_it() -> None:
    assert the_one(findings(machine(H100, shm_gib=0.06)))[:2] == ("note", "/dev/shm")
    level, _, what = the_one(findings(machine(H100, H100, shm_gib=0.06)))
    assert level == "problem"
    assert "--shm-size" in what
    assert the_one(findings(machine(H100, open_files=256)))[:2] == ("note", "open files")
    assert not_ok(findings(machine(H100, open_files=-1))) == []  # unlimited


def test_variables_that_hurt() -> None:
    for facts, level, word in (
        ({"ranks": ("LOCAL_RANK",)}, "problem", "unset LOCAL_RANK"),
        ({"slow": ("NCCL_P2P_DISABLE",)}, "note", "unset NCCL_P2P_DISABLE"),
        ({"accelerate": ("ACCELERATE_USE_FSDP",)}, "note", "unset ACCELERATE_USE_FSDP"),
        ({"shadows": ("/x/train.py",)}, "problem", "PYTHONPATH leads to others' /x/train.py"),
        ({"shadows_here": ("/x/train.py",)}, "note", "PYTHONSAFEPATH=1"),
        ({"bnb_cuda": "126"}, "note", "unset BNB_CUDA_VERSION"),
    ):
        found_level, _, what = the_one(findings(machine(H100, **facts)))
        assert found_level == level
        assert word in what


def test_what_only_a_gpu_can_stands_in_findings(recipe: Recipe) -> None:
    asked = with_override("parallel.strategy=fsdp")
    facts = machine(stack=stack(torch="2.13.0+cpu", torch_cuda=None))
    told = not_ok(findings(facts, asked, Inputs(geometry=SIZES["7b"])))
    assert (
        "problem",
        "parallel.strategy",
        "fsdp shards over GPUs, and there is none -> use ddp",
    ) in told


def test_gpus_that_the_batch_leaves_idle(recipe: Recipe) -> None:
    asked = with_override("batch.global_batch_size=6")
    level, _, what = the_one(findings(machine(*[H100] * 8), asked, Inputs(geometry=SIZES["7b"])))
    assert level == "note"
    assert "uses 6 of 8 GPUs" in what


def test_deepspeed_only_where_it_is_asked_for(recipe: Recipe) -> None:
    inputs = Inputs(geometry=SIZES["7b"])
    assert not_ok(findings(machine(H100, build_lacks=("ninja",)), recipe, inputs)) == []
    missing = machine(H100, stack=stack(H100, broken={"deepspeed": "No module named 'deepspeed'"}))
    level, _, what = the_one(findings(missing, with_override("parallel.strategy=zero2"), inputs))
    assert level == "problem"
    assert "zero2 needs it: No module named 'deepspeed'" in what
    there = machine(H100, stack=stack(H100, deepspeed="0.19.8"), build_lacks=("ninja",))
    assert not_ok(findings(there, with_override("parallel.strategy=zero2"), inputs)) == []
    level, _, what = the_one(
        findings(there, with_override("parallel.strategy=zero3_offload"), inputs)
    )
    assert level == "problem"
    assert "without ninja" in what


def test_host_memory_for_loading_and_for_merging(recipe: Recipe) -> None:
    facts, inputs = machine(*[H100] * 8, memory_gib=100.0), Inputs(geometry=SIZES["70b"])
    level, _, what = the_one(findings(facts, recipe, inputs))
    assert level == "note"
    assert "merging takes 257 GiB, of which 100 are free" in what
    facts = replace(facts, stack=stack(*[H100] * 8, deepspeed="0.19.8"))

    def problems(*overrides: str) -> list[str]:
        found = findings(facts, with_override(*overrides), inputs)
        return [item[2] for item in not_ok(found) if item[0] == "problem"]

    # Codes go to the GPUs as they are read; what is not quantized, one rank reads for all.
    assert problems("parallel.strategy=zero3") == []
    (told,) = problems("parallel.strategy=zero3", "quantization=null")
    assert "the base takes 128 GiB on the host, and 100 are free" in told
    assert "parallel.strategy=fsdp, which loads on the GPUs" in told


@pytest.mark.parametrize(
    ("offline", "token", "refusal", "level", "told"),
    [
        (True, False, "", "problem", "HF_HUB_OFFLINE is set -> `pressroom download org/model`"),
        (False, False, "", "note", "the hub gives it -> `pressroom download org/model` brings"),
        (False, False, "gated, and so on", "problem", "gated, and so on -> set HF_TOKEN"),
        (False, True, "gated, and so on", "problem", "-> accept its licence"),
        (False, True, "the hub does not answer (x)", "problem", "where there is a network"),
    ],
)
def test_a_model_that_is_not_in_the_cache(
    recipe: Recipe, offline: bool, token: bool, refusal: str, level: str, told: str
) -> None:
    asked = with_override("model.base=org/model")
    inputs = Inputs(absent={"org/model": refusal}, token=token)
    found = not_ok(findings(machine(H100, offline=offline), asked, inputs))
    assert [subject for _, subject, _ in found] == ["model.base", "room"]
    assert found[0][0] == level
    assert told in found[0][2]


def test_inputs_that_are_here(recipe: Recipe, home: Path) -> None:
    inputs = look(recipe, offline=True)
    assert (inputs.absent, inputs.wrong) == ({}, [])
    assert inputs.geometry is not None
    assert inputs.geometry.hidden_size == 64


def test_inputs_that_are_not(recipe: Recipe, home: Path, monkeypatch) -> None:
    asked = with_override("model.base=./nowhere", "data.articles=[a.jsonl, b/*.jsonl]")
    wrong = look(asked, offline=True).wrong
    assert [message.partition(": no such")[0] for message in wrong] == [
        "model.base: ./nowhere",
        "data.articles: a.jsonl",
        "data.articles: b/*.jsonl",
    ]
    # A folder half copied: the index names a shard that is not there.
    shutil.copytree(recipe.model.base, home / "half")
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (home / "half" / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "lacks files" in look(with_override("model.base=./half"), offline=True).wrong[0]
    asked = with_override("model.base=org/absent", "data.articles=['hub:org/news@main/a*.parquet']")
    assert look(asked, offline=True).absent == {"org/absent": "", "org/news": ""}


def test_the_hub_cache_is_read_without_a_network(recipe: Recipe, home: Path, monkeypatch) -> None:
    from huggingface_hub import constants

    commit = "0" * 40
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    repo = home / "hub" / "models--org--tiny"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    snapshot = repo / "snapshots" / commit
    shutil.copytree(recipe.model.base, snapshot)
    asked = with_override("model.base=org/tiny")
    inputs = look(asked, offline=True)
    assert inputs.absent == {}
    assert inputs.geometry is not None
    (snapshot / "model.safetensors").unlink()
    inputs = look(asked, offline=True)
    assert inputs.absent == {"org/tiny": ""}
    assert inputs.geometry is not None  # the room for the download is known


class _Hub(BaseHTTPRequestHandler):
    """Answers as the hub does for a file of a repository that is open, gated or absent."""

    tokens: ClassVar[list[str | None]] = []

    def do_HEAD(self) -> None:
        self.tokens.append(self.headers["Authorization"])
        code, error = 404, "RepoNotFound"
        if self.path.startswith("/org/open/resolve/main/config.json"):
            code, error = 200, ""
        elif self.path.startswith("/org/open/"):
            error = "RevisionNotFound"
        elif self.path.startswith("/org/gated/"):
            code, error = 403, "GatedRepo"
        elif self.path.startswith("/datasets/org/data/"):
            error = "EntryNotFound"
        self.send_response(code)
        self.send_header("Content-Length", "0")
        self.send_header("ETag", '"0"')
        if error:
            self.send_header("X-Error-Code", error)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        """Nothing."""


def test_the_hub_is_asked_for_what_is_absent(
    recipe: Recipe, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    template = (
        f"http://127.0.0.1:{server.server_port}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    )
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setenv("HF_TOKEN", "hf_0123456789abcdefghij")

    def refusal(*overrides: str) -> str:
        (reason,) = look(with_override(*overrides), offline=False).absent.values()
        return reason

    try:
        assert refusal("model.base=org/open") == ""
        assert refusal("model.base=org/open", "model.revision=x") == "it has no revision x"
        assert refusal("model.base=org/gated").startswith("gated, and its licence")
        assert refusal("model.base=org/none") == "no such repository, or a private one"
        assert refusal("data.articles=['hub:org/data']") == ""
        assert set(_Hub.tokens) == {"Bearer hf_0123456789abcdefghij"}
        assert look(with_override("model.base=org/open"), offline=False).token
    finally:
        server.shutdown()
        server.server_close()
    assert refusal("model.base=org/open").startswith("the hub does not answer")
    asked = len(_Hub.tokens)
    assert look(with_override("model.base=org/open"), offline=True).absent == {"org/open": ""}
    assert look(recipe, offline=False).absent == {}
    assert len(_Hub.tokens) == asked


def test_others_packages_are_found_in_order(tmp_path: Path) -> None:
    theirs, empty = tmp_path / "theirs", tmp_path / "empty"
    (theirs / "launch").mkdir(parents=True)
    (empty / "generate").mkdir(parents=True)  # no package: it hides nothing
    (theirs / "train.py").touch()
    (theirs / "launch" / "__init__.py").touch()
    ours = Path(__file__).parents[1]
    names = [str(theirs / "train.py"), str(theirs / "launch" / "__init__.py")]
    assert sorted(shadows([empty, theirs, ours])) == sorted(names)
    assert shadows([ours, theirs]) == ()


def test_nvidia_smi_as_it_writes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        "#!/bin/sh\n"
        '[ -n "$1" ] && { echo "NVIDIA H100 80GB HBM3, 81559"; '
        'echo "NVIDIA H100 80GB HBM3, 81920"; exit; }\n'
        'echo "| NVIDIA-SMI 550.54.14   Driver Version: 550.54.14   CUDA Version: 12.4     |"\n'
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert ask_driver() == Driver(
        version="550.54.14", cuda="12.4", gpus=(H100.name,) * 2, memory_gib=81559 / 1024
    )
    tool.write_text("#!/bin/sh\necho 'Failed to initialize NVML: mismatch'\nexit 18\n")
    assert ask_driver() == Driver(error="Failed to initialize NVML: mismatch")
    monkeypatch.setattr(
        gpus.subprocess, "run", lambda *a, **k: (_ for _ in ()).throw(FileNotFoundError)
    )
    assert ask_driver() is None


def test_facts_of_this_machine() -> None:
    facts = probe(deepspeed=False)
    assert facts.python.version == ".".join(map(str, sys.version_info[:3]))
    assert {"torch", "trl", "bitsandbytes"} <= {library.name for library in facts.libraries}
    assert "pytest" not in {library.name for library in facts.libraries}
    assert facts.stack.broken == {}
    assert facts.stack.deepspeed is None
    assert 0.13 < facts.stack.nf4["cpu"] <= NF4_TOLERANCE
    assert 0.1 < facts.memory_gib < 100_000
    assert facts.home.writable
    assert facts.home.free_gib > 0
    assert facts.offline


def test_why_cuda_is_not_available_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def too_old() -> bool:
        warnings.warn("CUDA initialization: the driver is too old\nsee below", stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", too_old)
    found = probe_stack(deepspeed=False, may_fetch=False)
    assert found.broken == {"cuda": "CUDA initialization: the driver is too old"}


def test_bitsandbytes_is_not_tried_where_it_would_fetch_code(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "kernels.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    found = probe_stack(deepspeed=False, may_fetch=True)
    assert (found.fetches, found.bitsandbytes, found.nf4) == (True, None, {})
    found = probe_stack(deepspeed=False, may_fetch=False)
    assert (found.fetches, bool(found.nf4)) == (False, True)


def test_gpus_as_torch_describes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    card = SimpleNamespace(name=H100.name, major=9, minor=0)
    for name, answer in {
        "is_available": True,
        "device_count": 2,
        "get_arch_list": list(ARCHS),
        "get_device_properties": card,
        "mem_get_info": (40 * 2**30, 80 * 2**30),
        "can_device_access_peer": False,
    }.items():
        assert callable(getattr(torch.cuda, name))
        monkeypatch.setattr(torch.cuda, name, lambda *index, answer=answer: answer)
    found = probe_stack(deepspeed=False, may_fetch=True)
    one = Gpu(name=H100.name, capability=(9, 0), memory_gib=80.0, free_gib=40.0)
    assert (found.gpus, found.torch_archs, found.peers) == ((one, one), ARCHS, False)
    # There is no such device: NF4 fails on it with torch's own reason, and is a finding.
    assert list(found.nf4) == ["cpu"]
    assert list(found.broken) == ["NF4 on cuda:0", "NF4 on cuda:1"]


@pytest.mark.gpu
def test_facts_of_a_gpu() -> None:
    facts = probe(deepspeed=False)
    assert facts.driver is not None
    assert len(facts.stack.gpus) == facts.counted_gpus > 0
    assert all(1 < card.free_gib <= card.memory_gib for card in facts.stack.gpus)
    assert (facts.stack.bitsandbytes or "").startswith("libbitsandbytes_cuda")
    assert facts.stack.nf4["cuda:0"] == pytest.approx(facts.stack.nf4["cpu"], abs=1e-4)
    assert not [f for f in findings(facts) if f.level == "problem"]


def doctor(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`pressroom doctor` in the working directory, as a person runs it."""
    command = [str(Path(sys.executable).with_name("pressroom")), "doctor", *arguments]
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


def test_the_command_on_this_machine(make_recipe, home: Path) -> None:
    make_recipe()
    secret = "hf_" + "0123456789abcdefghij"
    done = doctor("recipe.yaml", "--json", HF_TOKEN=secret)
    assert done.returncode == 0, done.stderr + done.stdout
    told = json.loads(done.stdout)
    assert told["fit"]
    assert {"model and articles are here"} <= {f["what"] for f in told["findings"]}
    assert told["machine"]["stack"]["bitsandbytes"]
    done_text = doctor("recipe.yaml", "parallel.strategy=fsdp", "model.base=a/b", HF_TOKEN=secret)
    assert done_text.returncode == 1
    assert done_text.stdout.splitlines()[-1].startswith("not fit for tiny: 2 to mend")
    assert "\x1b" not in done_text.stdout
    for text in (done.stdout, done.stderr, done_text.stdout, done_text.stderr):
        assert secret not in text
        assert "Traceback" not in text


def test_libraries_that_break_are_findings(home: Path) -> None:
    ours = str(Path(__file__).parents[1])
    for name in ("torch", "bitsandbytes"):
        package = home / "broken" / name / name
        package.mkdir(parents=True)
        # bitsandbytes logs the traceback of its own import, as this does.
        (package / "__init__.py").write_text(
            "import logging, sys\nlogging.error('Traceback: broken')\n"
            "sys.stdout.write('noise')\nsys.stderr.write('noise')\n"
            "raise OSError('libcudart.so.12: no such file')\n"
        )
        done = doctor(PYTHONPATH=os.pathsep.join([str(package.parent), ours]))
        assert done.returncode == 1
        (line,) = [line for line in done.stdout.splitlines() if line.startswith("✗")]
        assert line.split() == ["✗", name, "libcudart.so.12:", "no", "such", "file"]
        assert done.stderr == ""
        assert "noise" not in done.stdout


def test_a_recipe_with_a_mistake_is_an_error_of_it(make_recipe, home: Path) -> None:
    make_recipe()
    done = doctor("recipe.yaml", "memory.precisoin=bf16")
    assert done.returncode == 2
    assert "memory.precisoin: unknown key; did you mean precision?" in done.stderr
    assert done.stdout == ""
