"""`pressroom generate`: prompts and titles -> text, from a run, an adapter or a model's folder.

Everything that can be wrong with what was asked is told at once, before anything that takes
seconds to import is imported.
"""

import json
import math
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import click

from generate import asked
from generate.asked import Asked
from generate.origin import Origin, named
from generate.texts_file import require_place
from pressroom.console import UserError, harmless, log, say
from pressroom.files import lines_until, publish_text
from pressroom.prompts import unknown_format
from pressroom.run_dir import RunDir
from pressroom.samples import Sampling, Style
from pressroom.train_sections import Dtype

Share = click.FloatRange(min=0, max=1, min_open=True)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is given on the command line besides what writes and what is asked."""

    file: Path | None
    format: str | None
    max_new_tokens: int | None
    temperature: float | None
    top_p: float
    repetition_penalty: float
    seed: int
    out: Path | None
    batch_size: int
    processes: int | None
    dtype: Dtype | None
    base: str | None
    unquantized: bool


@click.command()
@click.argument("what", metavar="RUN|ADAPTER|MODEL")
@click.argument("prompts", nargs=-1)
@click.option("--title", "titles", multiple=True, help="Write the description of this title.")
@click.option("--file", type=click.Path(path_type=Path), help="Prompts, a line each, or .jsonl.")
@click.option("--format", help="How titles are rendered; as trained, where that is known.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), help="Where a text is cut.")
@click.option("--temperature", type=click.FloatRange(0, 100), help="0: the likeliest token.")
@click.option("--top-p", type=Share, default=1.0, help="Draw from the likeliest, of this sum.")
@click.option(
    "--repetition-penalty",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    help="Above 1: less of what the text has already.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of sampling.")
@click.option("--out", type=click.Path(path_type=Path), help="A .jsonl; goes on where killed.")
@click.option("--batch-size", type=click.IntRange(min=1), default=8, show_default=True)
@click.option("--processes", type=click.IntRange(min=1), help="A model each; one on each GPU.")
@click.option("--dtype", type=click.Choice(get_args(Dtype)), help="Computed in; as trained.")
@click.option("--base", help="Of an ADAPTER: a folder or ORG/NAME, not the base that it names.")
@click.option("--unquantized", is_flag=True, help="Of an ADAPTER: its base not in 4 bits.")
def generate(what: str, prompts: tuple[str, ...], titles: tuple[str, ...], **given: object) -> None:
    """Prompts or titles -> text.

    PROMPTS are continued as they stand; `-` reads them from standard input, a line each. A .jsonl
    has {"prompt": ...} or {"title": ...}, with an "id" or without. A text follows from its prompt,
    its id (else its line) and the seed, whatever it is batched with. Of a RUN without prompts, the
    recipe's are written, tuned beside base.
    """
    options = Options(**given)  # type: ignore[arg-type]
    problems: list[str] = []
    origin, wanted, style = Origin(), [], Style()  # type: Origin, list[Asked], Style
    with _gathered(problems):
        _require_sense(prompts, titles, options)
    with _gathered(problems):
        origin = _origin(what, options)
        style = origin.style
    if options.format and (wrong := unknown_format(options.format)):
        problems.append(f"--format {wrong}")
    elif options.format:
        style = replace(style, format=options.format)
    with _gathered(problems):
        wanted = _wanted(prompts, titles, options.file, style)
    if options.out:
        with _gathered(problems):
            require_place(options.out, options.file)
    if not wanted and not problems and not _is_whole_run(origin):
        problems.append(f"{what}: is no RUN, so give prompts, --title or --file")
    if problems:
        raise UserError("\n".join(problems))
    if options.format and not any(one.title is not None for one in wanted):
        log.warning("--format: without effect: there are no titles, and prompts stand as they are")
    how = _how(origin, options)
    if wanted:
        from generate import output as room

        room.write(origin, wanted, how, options.out, options.batch_size, options.processes)
    elif origin.run:
        _beside_base(origin.run, how, keep=_is_as_recipe(options))


@contextmanager
def _gathered(problems: list[str]) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        problems.append(str(error))


def _require_sense(prompts: tuple[str, ...], titles: tuple[str, ...], options: Options) -> None:
    """See that what is given goes together.

    Raises:
        UserError: With all that does not.
    """
    problems = [
        f"{prompt}: looks like a recipe's key; here --temperature and --max-new-tokens say "
        "how, and `pressroom run RECIPE key=value` writes anew"
        for prompt in prompts
        if re.match(r"[a-z_]+(\.[a-z_]+)+=", prompt)
    ]
    problems += [
        f"--{name.replace('_', '-')} {value}: must be a number"
        for name in ("temperature", "top_p", "repetition_penalty")
        if (value := getattr(options, name)) is not None and not math.isfinite(value)
    ]
    if options.file and (prompts or titles):
        problems.append(f"--file {options.file}: prompts are given too: give one of them")
    if "-" in prompts and (len(prompts) > 1 or titles):
        problems.append("-: standard input comes alone, without other prompts")
    if not (prompts or titles or options.file):
        problems += [
            f"--{name}: is for texts of your own: give prompts, --title or --file"
            for name in ("out", "dtype")
            if getattr(options, name)
        ]
    if problems:
        raise UserError("\n".join(problems))


def _origin(what: str, options: Options) -> Origin:
    origin = named(what)
    if (origin.run or origin.model) and (options.base or options.unquantized):
        kind = "run" if origin.run else "model"
        option = f"--base {options.base}" if options.base else "--unquantized"
        raise UserError(f"{option}: {what}: a {kind} knows its base; leave it out")
    quantized = not options.unquantized
    return replace(origin, base=options.base, quantized=quantized, dtype=options.dtype)


def _wanted(
    prompts: tuple[str, ...], titles: tuple[str, ...], file: Path | None, style: Style
) -> list[Asked]:
    if file:
        return asked.of_file(file, style)
    if prompts == ("-",):
        return asked.of_input(sys.stdin.buffer.read(), style)
    return asked.of_arguments(prompts, titles, style)


def _is_whole_run(origin: Origin) -> bool:
    """Whether it is a run's own model, of which the recipe's texts are written."""
    run = origin.run
    return run is not None and (origin.model or origin.adapter) in (
        run.merged,
        run.adapter,
        run.merged.absolute(),
        run.adapter.absolute(),
    )


def _how(origin: Origin, options: Options) -> Sampling:
    recipe = origin.generation
    given = options.temperature
    how = Sampling(
        max_new_tokens=options.max_new_tokens or recipe.max_new_tokens,
        temperature=recipe.temperature if given is None else given,
        top_p=options.top_p,
        repetition_penalty=options.repetition_penalty,
        seed=options.seed,
    )
    if how.top_p < 1 and not how.temperature:
        log.warning("--top-p: without effect at temperature 0, where nothing is drawn")
    return how


def _is_as_recipe(options: Options) -> bool:
    given = (options.max_new_tokens, options.temperature, options.dtype)
    return given == (None, None, None) and options.top_p == options.repetition_penalty == 1


def _beside_base(run: RunDir, how: Sampling, *, keep: bool) -> None:
    """The recipe's texts, tuned beside base; kept where they were written as it says."""
    from generate import sample as room

    samples = room.beside_base(run, run.load_recipe(), how)
    if keep:
        lines = "".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples)
        publish_text(run.samples, lines_until(run.samples) + lines)  # those of mid-training stay
    say(harmless(room.show(samples)))
