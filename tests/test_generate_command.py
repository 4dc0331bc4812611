"""`pressroom generate`: from runs, adapters and folders; a file that goes on; every mistake."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from merging import merge_run
from training import train

from generate import commands, texts
from generate.asked import of_arguments
from generate.origin import named
from generate.texts_file import TextsFile
from generate.voice import Voice
from pressroom.console import UserError
from pressroom.nn.nf4 import load_base
from pressroom.samples import Style

PROMPTS = "city!\nthe mayor of the old town says that\na\nten million people\n\nfire and storm\n"


def generate(*arguments: object, stdin: str | None = None) -> Result:
    options = ["generate", *map(str, arguments)]
    return CliRunner().invoke(commands.main, options, input=stdin)


def said(*arguments: object, stdin: str | None = None) -> str:
    done = generate(*arguments, stdin=stdin)
    assert done.exit_code == 0, repr(done.exception)
    return done.stdout


def told(*arguments: object) -> list[str]:
    """The lines of what is wrong."""
    done = generate(*arguments)
    assert isinstance(done.exception, UserError), repr(done.exception)
    return str(done.exception).splitlines()


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def model(tiny_model: Path, home: Path) -> Path:
    """A model's folder in home, and a file of prompts."""
    shutil.copytree(tiny_model, home / "llama")
    (home / "prompts.txt").write_text(PROMPTS)
    return Path("llama")


@pytest.fixture
def adapter(model: Path) -> Path:
    """An adapter that names the model, and changes it."""
    from peft import LoraConfig, get_peft_model

    base = load_base(model, None, "fp32", torch.device("cpu"))
    torch.manual_seed(0)
    # The B of a fresh adapter is 0.
    config = LoraConfig(r=4, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    tuned = get_peft_model(base, config)
    tuned.peft_config["default"].base_model_name_or_path = str(model)
    tuned.peft_config["default"].init_lora_weights = True
    tuned.save_pretrained("adapter")
    return Path("adapter")


def test_a_run_its_adapter_and_its_merged_folder_write(make_recipe, home: Path) -> None:
    data = {"articles": ["articles.jsonl"], "lower_case": True}
    make_recipe(prompt={"format": "llama2-chat"}, data=data)
    run = train("optimizer.num_steps=3")
    options = ("a storm", "--title", "Mayor Wins", "--max-new-tokens", 6, "--dtype", "float32")
    with_adapter = said("tiny", *options)
    assert with_adapter.startswith("a storm")
    assert "with this title: mayor wins [/INST]" in with_adapter
    assert said(run.adapter, *options) == with_adapter
    merge_run(run)
    merged = said(run.path, *options)
    assert "with this title: mayor wins [/INST]" in merged
    assert said(run.merged, *options) == merged
    # Moved away from its run: its card still says how titles were rendered.
    shutil.copytree(run.merged, home / "elsewhere")
    assert said("elsewhere", *options) == merged
    assert "### title: mayor ###" in said("elsewhere", "--title", "Mayor", "--format", "news")
    shutil.copytree(run.adapter, home / "copied")
    assert "### title: Mayor Wins ###" in said(
        "copied", *options, "--base", run.load_recipe().model.base
    )


def test_an_adapter_writes_on_its_base_in_4_bits(adapter: Path) -> None:
    def layers(origin) -> set[str]:
        model = Voice(origin).load(torch.device("cpu"))
        return {type(m).__name__ for m in model.modules() if "Linear" in type(m).__name__}

    assert "Linear4bit" in layers(named(str(adapter)))
    assert "Linear4bit" not in layers(replace(named(str(adapter)), quantized=False))
    options = ("a storm", "--max-new-tokens", 12, "--dtype", "float32")
    quantized, plain = said(adapter, *options), said(adapter, *options, "--unquantized")
    assert len({quantized, plain, said("llama", *options)}) == 3


def test_texts_come_in_the_order_asked_for(model: Path) -> None:
    lines = [line for line in PROMPTS.splitlines() if line]
    found = said(model, "--file", "prompts.txt", "--max-new-tokens", 1, "--batch-size", 2)
    starts = [found.index(line) for line in lines]
    assert starts == sorted(starts)
    assert said(model, "-", "--max-new-tokens", 1, stdin=PROMPTS) == found
    assert said(model, *lines, "--max-new-tokens", 1) == found


def test_a_text_grows_on_a_terminal(model: Path, capsys, monkeypatch) -> None:
    from generate import output
    from generate.asked import Asked
    from pressroom.samples import Sampling

    pieces: list[str] = []
    monkeypatch.setattr(output, "say", lambda text="", end="\n": pieces.append(text + end))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    asked, how = [Asked(1, "city\x1b[2J", "prompt 1")], Sampling(max_new_tokens=9)
    output.write(named(str(model)), asked, how, None, 8, None)
    assert len(pieces) > 5
    assert "".join(pieces).startswith("city\\x1b[2J")
    assert "\x1b" not in "".join(pieces)


def test_a_file_is_the_same_whatever_the_batch_and_after_a_cut(model: Path, home: Path) -> None:
    out, options = home / "out.jsonl", ("--file", "prompts.txt", "--max-new-tokens", 12)
    for sampling in ((), ("--temperature", 1, "--top-p", 0.95, "--repetition-penalty", 1.2)):
        out.unlink(missing_ok=True)
        said(model, *options, *sampling, "--out", out, "--batch-size", 1)
        whole = out.read_bytes()
        assert [row["id"] for row in rows(out)] == [1, 2, 3, 4, 6]
        assert all(row["text"] == row["prompt"] + row["continuation"] for row in rows(out))
        for size, left in ((2, 0), (7, 1), (3, 300), (2, len(whole) // 2), (4, len(whole) - 1)):
            out.write_bytes(whole[:left])
            said(model, *options, *sampling, "--out", out, "--batch-size", size)
            assert out.read_bytes() == whole


def test_what_is_there_is_not_written_again(model: Path, home: Path, monkeypatch) -> None:
    out = home / "out.jsonl"
    options = (model, "--file", "prompts.txt", "--max-new-tokens", 3, "--out", out)
    said(*options)
    changed = out.read_text().replace('"continuation": "', '"continuation": "kept ')
    out.write_text(changed)
    monkeypatch.setattr(Voice, "load", lambda *_: pytest.fail("there is nothing to write"))
    assert said(*options) == f"{out}  5 texts, 5 of them were there\n"
    assert out.read_text() == changed
    (home / "prompts.txt").write_text(PROMPTS.replace("city!", "town!"))
    (line,) = told(*options)
    assert "prompts.txt:1: id 1 is in" in line
    assert "with another prompt" in line
    (line,) = told(*options[:4], 4, *options[5:])
    assert "were written with max_new_tokens 3, now 4" in line


def test_half_a_line_is_cut_off_before_the_next_is_written(home: Path) -> None:
    out, how = home / "out.jsonl", {"seed": 0}
    asked = of_arguments(["a", "b", "c"], [], Style())
    TextsFile(out, how).add([(one, {"text": one.prompt}) for one in asked[:2]])
    out.write_bytes(out.read_bytes()[:-5])
    again = TextsFile(out, how)
    assert again.missing(asked) == asked[1:]
    again.add([(asked[2], {"text": "c"})])  # and killed again, before the end
    assert [row["id"] for row in rows(out)] == [1, 3]


def test_a_file_of_anybodys_is_left_alone(model: Path, home: Path) -> None:
    for content in (
        "my notes",
        "my notes\n",
        '{"title": "x"}\n',
        '{"id": 1, "text": "x"}\n{"id": ',
    ):
        out = home / "notes.jsonl"
        out.write_text(content)
        (line,) = told(model, "city!", "--out", out)
        assert "line 1 is not a text of `pressroom generate`" in line
        assert out.read_text() == content


def test_killed_it_goes_on(model: Path, home: Path) -> None:
    text = "".join(f"storm number {i}\n" for i in range(40))
    (home / "prompts.txt").write_text(text)
    command = (sys.executable, "-m", "generate.commands", "generate", "llama")
    options = ("--file", "prompts.txt", "--max-new-tokens", "60", "--batch-size", "1")
    child = subprocess.Popen([*command, *options, "--out", "out.jsonl"], cwd=home)
    until = time.monotonic() + 200
    while not (home / "out.jsonl").is_file() or (home / "out.jsonl").read_bytes().count(b"\n") < 2:
        assert time.monotonic() < until
        assert child.poll() is None
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    there = len(rows(home / "out.jsonl"))
    assert 2 <= there < 40
    done = said(model, *options, "--out", "out.jsonl")
    assert f"40 texts, {there} of them were there" in done
    said(model, *options[:-1], 9, "--out", "whole.jsonl")
    assert (home / "out.jsonl").read_bytes() == (home / "whole.jsonl").read_bytes()


def test_two_processes_write_what_one_does(model: Path, home: Path, monkeypatch) -> None:
    options = (model, "--file", "prompts.txt", "--max-new-tokens", 5, "--temperature", 1)
    said(*options, "--out", "one.jsonl")
    monkeypatch.setattr(texts, "_write", lambda *_: pytest.fail("this process writes nothing"))
    said(*options, "--out", "two.jsonl", "--processes", 2, "--batch-size", 1)
    assert (home / "one.jsonl").read_bytes() == (home / "two.jsonl").read_bytes()


def test_what_a_process_says_is_told(model: Path, home: Path) -> None:
    path = home / "llama" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    options = ("--file", "prompts.txt", "--batch-size", 1)
    for processes in (1, 2):
        (line,) = told(model, *options, "--processes", processes)
        assert "llama: missing or damaged" in line


def test_only_what_fits_the_positions_is_asked_of_a_model(model: Path, home: Path, caplog) -> None:
    config = json.loads((home / "llama" / "config.json").read_text())
    (home / "llama" / "config.json").write_text(
        json.dumps(config | {"max_position_embeddings": 30})
    )
    lines = ["city! " * 40, "a", "city! " * 50]
    (home / "prompts.txt").write_text("\n".join(lines))
    first, second = told(model, "--file", "prompts.txt")
    assert "prompts.txt:1: " in first
    assert "tokens, and the model has 30 positions" in first
    assert "prompts.txt:3: " in second
    with caplog.at_level("INFO", "pressroom"):
        found = said(model, "a", "the mayor", "--max-new-tokens", 27)
    assert "1 of 2 texts end where the model's 30 positions do" in caplog.text
    assert found


def test_mistakes_are_told_all_at_once(model: Path, home: Path) -> None:
    lines = told("lama", "x", "--file", "p.txt", "--format", "nws", "--out", "none/out.jsonl")
    text = "\n".join(lines)
    for wrong in (
        "--file p.txt: prompts are given too",
        "lama: no such run",
        "--format 'nws' is not one of news, llama2-chat, alpaca, vicuna, plain; did you mean news?",
        "--file p.txt: No such file",
        "--out none/out.jsonl: there is no folder none",
    ):
        assert wrong in text, text


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        (("llama",), "llama: is no RUN, so give prompts, --title or --file"),
        (("llama", "--out", "o.jsonl"), "--out: is for texts of your own"),
        (("llama", "-", "x"), "-: standard input comes alone"),
        (("llama", "x", "--out", "o.txt"), "--out o.txt: must end in .jsonl"),
        (("llama", "x", "--out", "f.jsonl"), "--out f.jsonl: is a folder"),
        (("llama", "--file", "p.jsonl", "--out", "p.jsonl"), "is the file of prompts"),
        (("llama", "--file", "empty.txt"), "empty.txt: empty"),
        (("llama", "x", "--base", "y"), "--base y: llama: a model knows its base"),
        (("llama", "generation.temperature=1"), "looks like a recipe's key"),
        (("weights", "x"), "weights: has no config.json, and no adapter_config.json"),
        (("folder", "x"), "folder: has no run in it"),
    ],
)
def test_a_mistake_is_told(model: Path, home: Path, arguments: tuple, wrong: str) -> None:
    (home / "p.jsonl").write_text('{"prompt": "a"}\n')
    (home / "empty.txt").write_text("\n")
    for name in ("f.jsonl", "folder", "weights"):
        (home / name).mkdir()
    shutil.copyfile(home / "llama" / "model.safetensors", home / "weights" / "model.safetensors")
    assert wrong in "\n".join(told(*arguments))


def test_what_has_no_effect_is_said(model: Path, caplog) -> None:
    with caplog.at_level("WARNING", "pressroom"):
        said(model, "a", "--max-new-tokens", 1, "--top-p", 0.5, "--format", "plain")
    assert "--top-p: without effect" in caplog.text
    assert "--format: without effect" in caplog.text


def test_pickles_and_code_of_a_model_are_refused(model: Path, home: Path, monkeypatch) -> None:
    folder = home / "llama"
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was read"))
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "pytorch_model.bin").write_bytes(b"no matter what")
    assert said(model, "a", "--max-new-tokens", 1)  # beside safetensors it is not read
    (folder / "model.safetensors").unlink()
    (line,) = told(model, "a")
    assert "has no *.safetensors (pytorch_model.bin is not read: a pickle can run any" in line
    (folder / "model.safetensors").write_bytes(weights)
    code = {"auto_map": {"AutoModelForCausalLM": "mine.Model"}}
    config = json.loads((folder / "config.json").read_text())
    for name, keys in (
        ("config.json", config | code),
        ("config.json", {"trust_remote_code": True} | config),
    ):
        (folder / name).write_text(json.dumps(keys))
        (folder / "mine.py").write_text("raise SystemExit('it was run')")
        (line,) = told(model, "a")
        assert "asks for code of the model's own, which is never run" in line


def test_pickles_and_code_of_an_adapter_or_its_base_are_refused(adapter: Path, home: Path) -> None:
    config = adapter / "adapter_config.json"
    plain = json.loads(config.read_text())
    config.write_text(json.dumps(plain | {"auto_map": {"x": "mine.X"}}))
    assert "adapter_config.json: auto_map asks for code" in told(adapter, "a")[0]
    config.write_text(json.dumps(plain))
    weights = adapter / "adapter_model.safetensors"
    weights.rename(home / "kept")
    (adapter / "adapter_model.bin").write_bytes(b"no matter what")
    assert "a pickle can run any code" in told(adapter, "a")[0]
    (home / "kept").rename(weights)
    base = json.loads((home / "llama" / "config.json").read_text())
    (home / "llama" / "config.json").write_text(json.dumps(base | {"auto_map": {"x": "mine.X"}}))
    assert "llama: config.json: auto_map asks for code" in told(adapter, "a")[0]
    (home / "llama").rename(home / "gone")
    (line,) = told(adapter, "a")
    assert line.startswith(f"{adapter.absolute()}: its base llama: no such folder")
    assert line.endswith("--base names another")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX")
def test_processes_end_with_the_one_that_started_them(model: Path, home: Path) -> None:
    import psutil

    (home / "prompts.txt").write_text("".join(f"storm {i}\n" for i in range(400)))
    command = (sys.executable, "-m", "generate.commands", "generate", "llama")
    options = ("--file", "prompts.txt", "--max-new-tokens", "200", "--batch-size", "1")
    child = subprocess.Popen([*command, *options, "--processes", "2", "--out", "o.jsonl"], cwd=home)
    until = time.monotonic() + 300
    while not (home / "o.jsonl").is_file():
        assert time.monotonic() < until
        assert child.poll() is None
        time.sleep(0.05)
    others = psutil.Process(child.pid).children(recursive=True)
    assert len(others) >= 2
    child.kill()
    child.wait()
    gone, alive = psutil.wait_procs(others, timeout=30)
    assert not alive
    assert len(gone) == len(others)
