"""What each stage's output is made from, and so which of them are there already.

A stage's key hashes the recipe sections that it reads and the keys of its inputs. Knows nothing
of how a stage is run.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

from pressroom import dataset
from pressroom.base_model import model_fingerprint, model_folder
from pressroom.files import publish_json, read_json, require_home, sha256_json, sizes
from pressroom.geometry import Geometry
from pressroom.quantized_base import Codes
from pressroom.recipe import Recipe
from pressroom.run_dir import RunDir
from pressroom.runs import runs_of
from pressroom.spec import spec_of
from pressroom.tokenizer import ArticleTokenizer


@dataclass(frozen=True)
class Keys:
    """What each stage's output is made from."""

    dataset: Path
    codes: Path | None
    """Where the base's 4-bit codes lie, or would; None for a base that is left as it is."""
    train: str
    evaluate: str
    merge: str
    generate: str

    def write(self, run: RunDir) -> None:
        """Leave them in a run for its jobs, which must not look at what has changed since."""
        plain = asdict(self) | {"dataset": str(self.dataset.absolute())}
        publish_json(
            run.keys, plain | {"codes": str(self.codes.absolute()) if self.codes else None}
        )

    @classmethod
    def read(cls, run: RunDir) -> "Keys":
        """What `write` has left."""
        plain = read_json(run.keys, "submit the run again")
        codes = Path(plain["codes"]) if plain["codes"] else None
        return cls(**{**plain, "dataset": Path(plain["dataset"]), "codes": codes})


def stage_keys(recipe: Recipe) -> Keys:
    """The keys of a recipe's stages, from its sections and the content of its inputs.

    Raises:
        UserError: The model or the articles are not there, it is no Llama, or does not fit.
    """
    require_home()
    folder = model_folder(recipe.model)
    recipe.require_fit(Geometry.of(folder))
    spec = spec_of(recipe, ArticleTokenizer(folder).fingerprint)
    data_key = dataset.dataset_key(spec, dataset.hash_articles(dataset.article_files(recipe)))
    plain = recipe.to_dict()
    sections = ("seed", "quantization", "lora", "batch", "optimizer", "parallel", "memory")
    read = {name: plain[name] for name in sections}
    if recipe.evaluation.early_stopping:  # else evaluating changes nothing
        read["evaluation"] = {k: plain["evaluation"][k] for k in ("every_steps", "early_stopping")}
    titles = recipe.evaluation.titles
    scored = [plain["evaluation"]["micro_batch_size"], titles]
    if titles:
        scored += [plain["generation"][name] for name in ("max_new_tokens", "temperature")]
    codes = None
    if recipe.quantization:
        codes = Codes(folder, recipe.quantization, recipe.memory.precision).place
    train = sha256_json(["train", data_key, model_fingerprint(folder), read])[:16]
    return Keys(
        dataset=dataset.dataset_folder(recipe.name, data_key),
        codes=codes,
        train=train,
        evaluate=sha256_json(["evaluate", train, scored])[:16],
        merge=sha256_json(["merge", train])[:16],
        generate=sha256_json(["generate", train, plain["generation"]])[:16],
    )


def run_of(recipe: Recipe, keys: Keys) -> RunDir | None:
    """The newest run with the same training key, finished or not."""
    for run in runs_of(recipe.name):
        if run.stages.get("train", {}).get("key") == keys.train:
            return run
    return None


def to_do(run: RunDir, keys: Keys, name: str) -> str | None:
    """Why a stage has to be done; None when its output is there, whole, of the same key."""
    if name == "prep":
        return None if keys.dataset.is_dir() else "no dataset yet"
    if name == "quantize":
        return None if keys.codes is None or keys.codes.is_dir() else "no 4-bit codes yet"
    stage = run.stages.get(name, {})
    if "finished" not in stage:
        return "goes on" if name == "train" and run.metrics.is_file() else "not done yet"
    if stage["key"] != getattr(keys, name):
        return "the recipe or an input has changed"
    found = sizes(run.output(name))
    damaged = [f for f, size in stage.get("files", {}).items() if found.get(f) != size]
    return f"missing or damaged: {', '.join(damaged)}" if damaged or not found else None
