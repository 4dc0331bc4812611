"""The `pressroom` command: a table of subcommands, each loaded when it is called.

`pressroom --help` reads this table alone. Every subcommand is a click command in the room that
does the work, and runs the same as `python -m ROOM.MODULE`.
"""

import difflib
import importlib
from typing import cast

import click

from pressroom import console

COMMANDS = {
    "doctor": ("train.doctor.command:main", "Is this machine fit, and what to do where it is not."),
    "download": ("pressroom.download:main", "A model and hub data sets -> this machine's cache."),
    "quantize": ("train.quantize:main", "A base's 4-bit codes, made once for every job."),
    "plan": ("pressroom.planner.command:main", "Does it fit, how fast, what does it cost."),
    "fetch": ("data_prep.fetch:main", "Articles from a news feed -> data/articles/*.jsonl."),
    "prep": ("data_prep.prepare:main", "Articles -> tokenized, packed Arrow shards."),
    "inspect": (
        "data_prep.inspect:main",
        "Decoded rows with the loss mask, lengths and packing.",
    ),
    "verify": ("data_prep.verify:main", "Is a dataset whole, and every row as the recipe says."),
    "trace": (
        "data_prep.trace:main",
        "Where an article is: line, shard and rows, or why not; and which runs saw it.",
    ),
    "train": ("launch.stages:train", "Fine-tune on this machine's GPUs, or its CPU."),
    "submit": ("launch.submit:main", "Train on a SLURM cluster: all is checked first."),
    "resume": ("launch.submit:resume", "Submit what of a run is missing, as it was submitted."),
    "evaluate": ("generate.commands:evaluate", "Held-out perplexity of a run, base beside tuned."),
    "merge": (
        "generate.commands:merge",
        "Adapter + base -> one model folder that any client loads.",
    ),
    "generate": ("generate.commands:generate", "Prompts or titles -> text."),
    "report": (
        "pressroom.report.command:main",
        "A run or an experiment as one page: curves, samples, figures.",
    ),
    "run": ("launch.stages:main", "The whole chain, skipping what is done."),
    "scale": ("launch.experiments.commands:scale", "How fast on 1, 2, 4 ... GPUs; what it costs."),
    "sweep": ("launch.experiments.commands:sweep", "Which settings are best, by held-out loss."),
    "size": (
        "launch.experiments.commands:size",
        "Does a larger model, more data or longer training pay.",
    ),
    "runs": ("launch.watch:runs", "What is queued, running, done or failed."),
    "ledger": ("launch.ledger_command:main", "Where the GPU-hours of runs went."),
    "logs": ("launch.logs:main", "What a run's ranks and jobs say."),
    "cancel": ("launch.watch:cancel", "A run's jobs out of SLURM's queue and off its nodes."),
}
"""Name -> the click command and its line of help. Only what works stands here."""


class _Table(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        if cmd_name not in COMMANDS:
            close = difflib.get_close_matches(cmd_name, COMMANDS, n=1)
            ctx.fail(f"no command {cmd_name!r}" + (f"; did you mean {close[0]}?" if close else ""))
        module, _, name = COMMANDS[cmd_name][0].partition(":")
        return cast(click.Command, getattr(importlib.import_module(module), name))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=_Table, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="pressroom")
def main() -> None:
    """News articles in, a fine-tuned Llama 2 out.

    A RECIPE is a YAML file or the name of a shipped one (demo, llama2_7b, llama2_13b,
    llama2_70b); `key=value` after it overrides one of its keys. A RUN is a run's folder or name.
    """


def entry() -> None:
    """The console script."""
    console.entry(main, "pressroom")
