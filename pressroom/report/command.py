"""`pressroom report RUN|EXPERIMENT`: a run, or an experiment, as one page, report.html."""

import click

from pressroom.console import UserError, entry, log, say
from pressroom.experiment import Experiment, find_experiment
from pressroom.runs import find_run


@click.command()
@click.argument("name", metavar="RUN|EXPERIMENT")
def main(name: str) -> None:
    """A run as one page that needs no other file: curves, samples, figures, recipe.

    Of an experiment the table and the pictures are made again, from its runs alone.
    """
    experiment = _experiment(name)
    if experiment:
        from pressroom.report import experiment_page

        problems = experiment_page.publish(experiment)
        say(experiment_page.text(experiment))
        for problem in problems:
            log.warning("%s", problem)
        say(str(experiment.report))
        return
    run = find_run(name)
    from pressroom.report import page

    page.publish(run)
    say(str(run.report))


def _experiment(name: str) -> Experiment | None:
    """The experiment that a name means, where it means no run."""
    try:
        find_run(name)
    except UserError:
        return find_experiment(name)
    return None


if __name__ == "__main__":
    entry(main)
