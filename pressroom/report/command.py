"""`pressroom report RUN`: a run as one page, report.html."""

import click

from pressroom.console import entry, say
from pressroom.runs import find_run


@click.command()
@click.argument("run_name", metavar="RUN")
def main(run_name: str) -> None:
    """A run as one page that needs no other file: curves, samples, figures, recipe."""
    run = find_run(run_name)
    from pressroom.report import page

    page.publish(run)
    say(str(run.report))


if __name__ == "__main__":
    entry(main)
