"""The program: its table of commands, and what becomes of an error."""

import io
import json
import re
import sys

import click

from alloop import __version__
from alloop.cli._lazy import Entry, LazyGroup
from alloop.errors import AlloopError

ENTRIES = {
    "init": Entry("alloop.cli.init:init", "Make a workspace: settings, database, what to do next."),
    "pool": Entry("alloop.cli.pool:pool", "Add images, list them, check that they are still there."),
    "labels": Entry("alloop.cli.labels:labels", "Import labels that are known already; export all labels."),
    "run": Entry("alloop.cli.run:run", "Advance the current round as far as it can go without a person."),
    "status": Entry("alloop.cli.status:status", "Show rounds, accuracy, pending tasks and who labeled how many."),
    "report": Entry("alloop.cli.report:report", "Write what the project has come to as one HTML page."),
    "train": Entry("alloop.cli.steps:train", "Train on all labels, calibrate and measure on the holdout."),
    "score": Entry("alloop.cli.steps:score", "Score the unlabeled images with the round's model."),
    "select": Entry("alloop.cli.steps:select", "Choose the images to ask about next."),
    "push": Entry("alloop.cli.steps:push", "Send the chosen images to the annotators."),
    "pull": Entry("alloop.cli.steps:pull", "Fetch answers, edits and deletions."),
    "evaluate": Entry("alloop.cli.steps:evaluate", "Measure the newest model on the holdout labels there are now."),
    "explain": Entry("alloop.cli.explain:explain", "Say why an image was asked about, or how it stands now."),
    "replay": Entry("alloop.cli.explain:replay", "Choose a round's images again from what is stored."),
    "strategies": Entry("alloop.cli.strategies:strategies", "Say which query strategies there are."),
    "compare": Entry("alloop.cli.compare:compare", "Train several methods on the same labels and compare them."),
    "simulate": Entry("alloop.cli.simulate:simulate", "Compare strategies on labels that are known, in the real loop."),
    "round": Entry("alloop.cli.rounds:round_", "List rounds, show one, close one."),
    "db": Entry("alloop.cli.db:db", "Upgrade, check and back up the database."),
    "labelstudio": Entry("alloop.cli.labelstudio:labelstudio", "Start and stop a local Label Studio."),
    "demo": Entry("alloop.cli.demo:demo", "See a whole project on scikit-learn's digits."),
}


@click.group(cls=LazyGroup, entries=ENTRIES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="alloop")
def cli() -> None:
    """From a folder of unlabeled images to a classifier you can trust, with few labels.

    \b
    A project from nothing:
      alloop init pets --classes cat,dog --images photos
      cd pets
      alloop pool add
      alloop labelstudio up          (or name your own server in alloop.toml)
      alloop run                     (again whenever people have labeled)
    """


def main() -> None:
    """Run the program and turn errors into messages and exit codes (README, "Exit codes")."""
    if isinstance(
        sys.stdout, io.TextIOWrapper
    ):  # a path may hold bytes that are not UTF-8; stderr escapes them already
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        cli.main(prog_name="alloop", standalone_mode=False)
    except click.exceptions.Exit as exit_:
        sys.exit(exit_.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("Interrupted. What was done is recorded; the same command continues.", err=True)
        sys.exit(130)
    except AlloopError as error:
        _show(error)
        sys.exit(error.exit_code)


def _show(error: AlloopError) -> None:
    flags = [flag for flag in sys.argv if re.fullmatch(r"-[vq]+|--verbose", flag)]
    if sum(flag.count("v") if flag != "--verbose" else 1 for flag in flags) > 1:
        import traceback

        traceback.print_exc()
    if "--json" in sys.argv:
        click.echo(json.dumps({"error": error.message, "hint": error.hint, "exit_code": error.exit_code}))
    click.echo(f"Error: {error}", err=True)


if __name__ == "__main__":
    main()
