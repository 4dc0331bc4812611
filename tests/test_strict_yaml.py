"""Recipes are read strictly, and every error is told at once with its line."""

from pathlib import Path

import pytest

from pressroom.cluster import Cluster
from pressroom.console import UserError
from pressroom.recipe import Recipe

GOOD = """\
name: x
model: {base: m}
data:
  articles: [a.jsonl]
  held_out: 0.1
sequence_length: 64
batch: {global_batch_size: 4, micro_batch_size: 2}
optimizer: {learning_rate: 2e-4, num_steps: 5}
"""


def load(tmp_path: Path, text: str, *overrides: str) -> Recipe:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    return Recipe.load(str(path), overrides)


def errors(tmp_path: Path, text: str, *overrides: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        load(tmp_path, text, *overrides)
    return str(caught.value).replace(str(tmp_path) + "/", "").splitlines()


def test_exponent_without_a_dot_is_a_number(tmp_path: Path) -> None:
    assert load(tmp_path, GOOD).optimizer.learning_rate == 2e-4


def test_defaults_then_file_then_command_line(tmp_path: Path) -> None:
    recipe = load(tmp_path, GOOD, "seed=3", "optimizer.learning_rate=1e-5", "lora.r=8")
    assert (recipe.seed, recipe.optimizer.learning_rate, recipe.lora.r) == (3, 1e-5, 8)
    assert recipe.lora.alpha == 32
    assert load(tmp_path, GOOD, "quantization=null").quantization is None


def test_every_error_at_once_with_its_line(tmp_path: Path) -> None:
    text = """\
name: x
nmae: y
model: {base: m}
data:
  articles: [a.jsonl]
  held_out: lots
  articles: [b.jsonl]
sequence_length: "64"
learning_rate: 1e-4
batch: {global_batch_size: 5, micro_batch_size: 2}
optimizer: {learning_rate: "2e-4", num_steps: 5}
prompt: {format: new}
parallel: {strategy: fsdp}
"""
    found = errors(tmp_path, text, "lora.rank=3")
    assert found == [
        "command line: lora.rank: unknown key; did you mean lora.r?",
        "r.yaml:2: nmae: unknown key; did you mean name?",
        'r.yaml:6: data.held_out: must be a number or a date, YYYY-MM-DD, not "lots"',
        "r.yaml:7: data.articles: given twice, first at r.yaml:5",
        'r.yaml:8: sequence_length: must be a whole number, not "64" (quoted: text, not a number)',
        "r.yaml:9: learning_rate: unknown key; did you mean optimizer.learning_rate?",
        "r.yaml:10: batch.micro_batch_size: 2 does not divide global_batch_size 5",
        'r.yaml:11: optimizer.learning_rate: must be a number, not "2e-4" '
        "(quoted: text, not a number)",
        "r.yaml:12: prompt.format: 'new' is not one of news, llama2-chat, alpaca, vicuna, plain; "
        "did you mean news?",
    ]


def test_rules_between_sections_are_told_beside_other_errors(tmp_path: Path) -> None:
    text = GOOD + "parallel: {strategy: fsdp}\nquantization: {storage_dtype: uint8}\nsede: 1\n"
    assert errors(tmp_path, text, "optimizer.name=paged_adamw_8bit") == [
        "command line: optimizer.name: paged_adamw_8bit cannot save its state under fsdp: use "
        "adamw_torch_fused",
        "r.yaml:10: quantization.storage_dtype: uint8 would not be sharded by fsdp: must be "
        "bfloat16, the dtype of the rest",
        "r.yaml:11: sede: unknown key; did you mean seed?",
    ]


def test_missing_keys_are_named(tmp_path: Path) -> None:
    assert errors(tmp_path, "name: x\nmodel: {}\n") == [
        "r.yaml: data: is required",
        "r.yaml: sequence_length: is required",
        "r.yaml: batch: is required",
        "r.yaml: optimizer: is required",
        "r.yaml:2: model.base: is required",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "r.yaml:1: not YAML: expected ',' or ']', but got '<stream end>'"),
        ("- 1\n", "r.yaml:1: must be a mapping of `key: value`"),
        ("model: &a {base: *a}\n", "r.yaml: an alias inside what it stands for"),
        (f"seed: {'9' * 5000}\n", "r.yaml:1: seed: Exceeds the limit"),
        ("seed: 4294967296\n", "r.yaml:1: seed: must be less than 4294967296"),
        ("name: !!python/object x\n", "the tag tag:yaml.org,2002:python/object is not allowed"),
    ],
)
def test_what_is_not_a_recipe_at_all(tmp_path: Path, text: str, message: str) -> None:
    assert message in "\n".join(errors(tmp_path, text))


def test_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(b"name: caf\xe9\n")
    with pytest.raises(UserError, match=r"not UTF-8 text \(byte 9\)"):
        Recipe.load(str(tmp_path / "r.yaml"))


def test_yaml_1_2_words(tmp_path: Path) -> None:
    text = GOOD.replace("name: x", "name: no").replace("[a.jsonl]", "[on, 010.jsonl]")
    recipe = load(tmp_path, text)
    assert recipe.name == "no"
    assert recipe.data.articles == ("on", "010.jsonl")
    assert load(tmp_path, GOOD, "seed=010").seed == 10


def test_override_that_is_none(tmp_path: Path) -> None:
    assert errors(tmp_path, GOOD, "seed") == ["command line: 'seed' is not of the form key=value"]


def test_an_override_given_twice(tmp_path: Path) -> None:
    found = errors(tmp_path, GOOD, "seed=1", "lora.r=2", "seed=3")
    assert found == ["command line: seed: given twice"]


def test_one_file_is_still_a_list(tmp_path: Path) -> None:
    found = errors(tmp_path, GOOD, "data.articles=a.jsonl", "batch=3", "name=a b")
    assert found == [
        'command line: name: must be letters, digits, `.`, `_` and `-` only, not "a b"',
        'command line: data.articles: must be a list, not "a.jsonl": [a.jsonl]',
        "command line: batch: must be a section, `key: value` below it, not 3",
    ]


def test_a_cluster_is_read_as_strictly(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("partition: gpu\ngpu: h100\ngpus_per_node: 8\nnodes: 2\ntime_limit: 12h\n")
    with pytest.raises(UserError, match=r"c.yaml:5: time_limit: "):
        Cluster.load(path)
    cluster = Cluster.load(path, ["time_limit=12:00:00"])
    assert cluster.world_size == 16


def test_a_union_of_words_and_lists(tmp_path: Path) -> None:
    assert errors(tmp_path, GOOD, "lora.target_modules=all") == [
        "command line: lora.target_modules: must be 'all-linear' or a list, not \"all\": [all]"
    ]
    assert load(tmp_path, GOOD, "lora.target_modules=[q_proj]").lora.target_modules == ("q_proj",)
