"""Models and data sets of a hub: fetched once, resumed, found offline, refused with a reason."""

import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import invented_articles, recipe_text
from hub_server import TOKEN, Hub, Repo, serving

from pressroom import hub, sources
from pressroom.console import UserError

SMALL = dict.fromkeys(("config.json", "tokenizer.json", "tokenizer_config.json"), b"{}")
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def server() -> Iterator[Hub]:
    with serving() as running:
        yield running


def transfers(server: Hub) -> list[str]:
    return [r.path for r in server.requests if r.is_transfer]


def test_a_model_is_fetched_once_and_resumed_where_it_broke(server: Hub, tmp_path: Path) -> None:
    weights = os.urandom(25 * 2**20)  # the client writes blocks of 10 MiB
    unread = {"pytorch_model.bin": b"p", "README.md": b"r", "original/params.json": b"{}"}
    server.repos["models/org/llama"] = Repo({**SMALL, **unread, "model.safetensors": weights})
    server.break_after = 22 * 2**20
    first = server.run(tmp_path, "download", "org/llama")
    assert first.returncode == 0, first.stderr
    assert [r.range for r in server.requests if "/cdn/" in r.path] == [None, "bytes=20971520-"]
    assert "download org/llama 25/25 MiB" in first.stderr
    folder = Path(first.stdout.splitlines()[-1].removeprefix("model.base="))
    assert (folder / "model.safetensors").read_bytes() == weights
    brought = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert brought == {*SMALL, "model.safetensors"}

    again = server.run(tmp_path, "download", "org/llama")
    assert (again.stdout, transfers(server)) == (first.stdout, [])
    for offline in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": NOWHERE}):
        found = server.run(tmp_path, "download", "org/llama", **offline)
        assert (found.returncode, found.stdout) == (0, first.stdout)
        assert len(found.stderr.splitlines()) == 1, found.stderr
        assert server.requests == []


def test_a_file_that_is_whole_is_not_fetched_again(server: Hub, tmp_path: Path) -> None:
    server.repos["models/org/llama"] = Repo({**SMALL, "model.safetensors": b"w" * 100})
    assert server.run(tmp_path, "download", "org/llama").returncode == 0
    commit = server.repos["models/org/llama"].commit
    repo = tmp_path / "hub" / "models--org--llama"
    (repo / "snapshots" / commit / "model.safetensors").unlink()
    for blob in (repo / "blobs").iterdir():
        if blob.stat().st_size == 100:
            blob.unlink()
    assert server.run(tmp_path, "download", f"org/llama@{commit}").returncode == 0
    assert [path.rpartition("/")[0] for path in transfers(server)] == ["/cdn"]
    shutil.rmtree(repo / "trees")  # as other versions of the client leave a cache
    assert server.run(tmp_path, "download", "org/llama", HF_HUB_OFFLINE="1").returncode == 0


def test_a_pinned_model_is_named_with_its_revision(server: Hub, tmp_path: Path) -> None:
    done = server.run(tmp_path, "download", "org/llama@v1", HF_HUB_OFFLINE="1")
    assert "`pressroom download org/llama@v1` brings it once" in done.stderr


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, r"org/gated is gated.*\(HF_TOKEN is not set\): accept its licence at https://"),
        ({"HF_TOKEN": TOKEN}, r"org/gated is gated.*\(HF_TOKEN is set\): accept its licence at"),
        ({"HF_TOKEN": "hf_" + "y" * 20}, "the hub does not take the token in HF_TOKEN"),
        ({"HF_HUB_OFFLINE": "1"}, "not whole in this machine's cache, and HF_HUB_OFFLINE forbids"),
        ({"HF_ENDPOINT": NOWHERE}, "did not give org/gated.*Connection refused.*pressroom downl"),
    ],
)
def test_what_the_hub_refuses_is_told_in_one_line(
    server: Hub, tmp_path: Path, environment: dict[str, str], message: str
) -> None:
    server.repos["models/org/gated"] = Repo({**SMALL, "model.safetensors": b"w"}, gated=True)
    done = server.run(tmp_path, "download", "org/gated", **environment)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert re.search(message, done.stderr), done.stderr
    token = environment.get("HF_TOKEN")
    if token:
        assert token in {r.token for r in server.requests}
        assert token not in done.stdout + done.stderr


def test_the_token_goes_to_the_hub_alone(server: Hub, tmp_path: Path) -> None:
    server.repos["models/org/llama"] = Repo({**SMALL, "model.safetensors": b"w" * 100})
    done = server.run(tmp_path, "download", "org/llama", HF_TOKEN=TOKEN)
    assert done.returncode == 0
    assert {r.token for r in server.requests if "/resolve/" in r.path} == {TOKEN}
    assert {r.token for r in server.requests if "/cdn/" in r.path} == {None}
    assert TOKEN not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("org/none", "the hub has no model org/none, or it is private: see https://"),
        ("org/pickled", r"org/pickled has no \*.safetensors \(pytorch_model.bin is not read: a"),
        ("org/pickled@v9", "org/pickled has no revision v9"),
        ("org/bare", "org/bare has no config.json, tokenizer.json, tokenizer_config.json"),
        ("llama2_7", r"no shipped recipe of that name .* did you mean llama2_7b\?"),
        ("my/recipe.yaml", "my/recipe.yaml: no such file"),
    ],
)
def test_what_cannot_be_downloaded(server: Hub, tmp_path: Path, what: str, message: str) -> None:
    server.repos["models/org/pickled"] = Repo({**SMALL, "pytorch_model.bin": b"p"})
    server.repos["models/org/bare"] = Repo({"model.safetensors": b"w"})
    done = server.run(tmp_path, "download", what)
    assert done.returncode == 2
    assert re.search(message, done.stderr), done.stderr
    assert transfers(server) == []


def test_a_disk_that_is_too_small_is_told_before(tmp_path: Path, monkeypatch) -> None:
    usage = SimpleNamespace(free=3 * 2**30)
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda path: usage)
    repo = hub.Repo("model", "org/llama", "main", "model.base")
    hub._check_room(repo, 3 * 2**30, tmp_path / "not" / "yet")
    with pytest.raises(UserError, match=r"takes 13.0 GiB more in .* 10.0 GiB are missing"):
        hub._check_room(repo, 13 * 2**30, tmp_path / "not" / "yet")


def parquet(records: list[dict]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(records), sink)
    return sink.getvalue()


@pytest.fixture
def hub_recipe(server: Hub, home: Path, tokenizer_folder: Path) -> Path:
    """A recipe whose articles lie on the hub, under other column names."""
    folder = home / "model"
    shutil.copytree(tokenizer_folder, folder)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_text("")
    renamed = {"title": "headline", "description": "summary", "url": "url"}
    records = [
        {renamed.get(key, key): value for key, value in article.items()}
        for article in invented_articles(60)
    ]
    train = {
        f"data/train-0000{i}-of-00002.parquet": parquet(records[i * 30 : i * 30 + 30])
        for i in range(2)
    }
    other = {"data/test-00000-of-00001.parquet": b"no", "load.py": b"raise SystemExit"}
    server.repos["datasets/org/news"] = Repo({**train, **other})
    columns = {"title": "headline", "description": "summary"}
    data = {"articles": ["hub:org/news"], "columns": columns, "held_out": 0.1}
    (home / "recipe.yaml").write_text(recipe_text(folder, data=data))
    return home / "recipe.yaml"


def test_a_recipe_reads_a_hub_dataset_online_and_offline(
    server: Hub, hub_recipe: Path, home: Path
) -> None:
    cache, commit = home / "cache", server.repos["datasets/org/news"].commit
    fetched = server.run(cache, "download", "recipe.yaml")
    assert fetched.returncode == 0, fetched.stderr
    assert len([r for r in server.requests if r.method == "GET" and "/cdn/" in r.path]) == 2

    made = server.run(cache, "prep", "recipe.yaml", HF_HUB_OFFLINE="1")
    assert made.returncode == 0, made.stderr
    assert server.requests == []
    folder = Path(made.stdout.splitlines()[0])
    manifest = json.loads((folder / "manifest.json").read_text())
    names = [f"data/train-0000{i}-of-00002.parquet" for i in range(2)]
    assert list(manifest["articles"]) == [f"hub:org/news@{commit}/{name}" for name in names]
    assert manifest["counts"]["read"] == 60
    assert manifest["spec"]["data.columns.title"] == "headline"

    for name in names:
        path = home / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(server.repos["datasets/org/news"].files[name])
    local = server.run(cache, "prep", "recipe.yaml", 'data.articles=["data/train-*"]')
    assert local.returncode == 0, local.stderr
    assert local.stdout.splitlines()[0] == str(folder)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("hub:org/none", "the hub has no dataset org/none"),
        ("hub:org/news@v2", "org/news has no revision v2"),
        ("hub:org/news/data/trian-*.parquet", "no file of that name; it has data/train-0000"),
        ("hub:org/news/load.py", "load.py: unknown kind of file; known: .jsonl"),
        ("hub:news", r"recipe: data.articles: hub:news: is not hub:ORG/NAME\[@REVISION\]\[/GLOB\]"),
    ],
)
def test_entries_that_lead_nowhere(
    server: Hub, hub_recipe: Path, home: Path, entry: str, message: str
) -> None:
    done = server.run(home / "cache", "prep", "recipe.yaml", f'data.articles=["{entry}"]')
    assert done.returncode == 2
    found = done.stderr.replace("command line", "recipe")
    assert re.search(message, found), done.stderr


@pytest.mark.parametrize(
    ("files", "chosen"),
    [
        ("data/train-0-of-2.parquet data/train-1-of-2.parquet data/test-0.parquet a.py", [0, 1]),
        ("train.jsonl test.jsonl README.md", [0]),
        ("default/train/0000.parquet default/test/0000.parquet", [0]),
        ("my-training.arrow my-testing.arrow", [0]),
        ("a.jsonl b.jsonl", [0, 1]),
        ("constrained.jsonl trainer.jsonl", [0, 1]),
    ],
)
def test_files_that_stand_for_a_dataset(files: str, chosen: list[int]) -> None:
    names = files.split()
    assert sources.choose("hub:o/n", "", names) == [names[i] for i in chosen]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ("en/train.jsonl de/train.jsonl", r"name one: hub:o/n/de/\*.jsonl, hub:o/n/en/\*.jsonl"),
        ("train.jsonl train.parquet", r"name one: hub:o/n/\*.jsonl, hub:o/n/\*.parquet"),
        ("train.csv news.py", "no file of a known kind .* hub:o/n@refs/convert/parquet"),
    ],
)
def test_files_that_are_not_clear(files: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        sources.choose("hub:o/n", "", files.split())
