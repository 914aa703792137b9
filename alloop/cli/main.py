"""The program: its table of commands, and its handling of errors."""

import contextlib
import errno
import gc
import io
import os
import re
import sys

import click

from alloop import __version__
from alloop.cli._lazy import Entry, LazyGroup
from alloop.errors import KEPT, AlloopError

ENTRIES = {
    "init": Entry("alloop.cli.init:init", "Create a workspace: settings and database."),
    "pool": Entry("alloop.cli.pool:pool", "Add images, list them, check that they are still there, mark junk."),
    "labels": Entry("alloop.cli.labels:labels", "Import known labels; export all labels."),
    "run": Entry("alloop.cli.run:run", "Advance the current round as far as it can go without a person."),
    "status": Entry("alloop.cli.status:status", "Show where the project stands, what comes next, and all rounds."),
    "serve": Entry("alloop.cli.serve:serve", "Show the project in a browser: results, images, mistakes, people."),
    "report": Entry("alloop.cli.report:report", "Write the project's results as one HTML page."),
    "predict": Entry("alloop.cli.predict:predict", "Predict images with the newest model, or with that of a round."),
    "train": Entry("alloop.cli.steps:train", "Train on all labels, calibrate and measure on the holdout."),
    "score": Entry("alloop.cli.steps:score", "Score the unlabeled images with the round's model."),
    "select": Entry("alloop.cli.steps:select", "Choose the images to ask about next."),
    "push": Entry("alloop.cli.steps:push", "Send the chosen images to the annotators."),
    "pull": Entry("alloop.cli.steps:pull", "Fetch answers, edits and deletions."),
    "ask": Entry("alloop.cli.ask:ask", "Ask people about images that you name."),
    "evaluate": Entry("alloop.cli.steps:evaluate", "Measure the newest model on the current holdout labels."),
    "autolabel": Entry("alloop.cli.autolabel:autolabel", "Label the images that the model labels surely enough."),
    "explain": Entry("alloop.cli.explain:explain", "Explain why an image was asked about, and show its state."),
    "replay": Entry("alloop.cli.explain:replay", "Choose a round's images again from stored data."),
    "export-model": Entry("alloop.cli.export_model:export_model", "Write the model to FOLDER, for other programs."),
    "strategies": Entry("alloop.cli.strategies:strategies", "List the query strategies."),
    "backbones": Entry("alloop.cli.backbones:backbones", "List published trunks worth trying."),
    "compare": Entry("alloop.cli.compare:compare", "Train several methods on the same labels and compare them."),
    "simulate": Entry("alloop.cli.simulate:simulate", "Compare strategies on known labels, in the real loop."),
    "round": Entry("alloop.cli.rounds:round_", "List rounds, show one, close one."),
    "db": Entry("alloop.cli.db:db", "Upgrade, check and back up the database."),
    "labelstudio": Entry("alloop.cli.labelstudio:labelstudio", "Start and stop a local Label Studio."),
    "demo": Entry("alloop.cli.demo:demo", "See a whole project on scikit-learn's digits."),
}

NOBODY_READS = 141  # exit code that shells report for a program ended by a closed pipe: 128 + SIGPIPE
_SCARCE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM}


@click.group(cls=LazyGroup, entries=ENTRIES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="alloop")
def cli() -> None:
    """Turn a folder of unlabeled images into a calibrated classifier, with few labels.

    \b
    A project from nothing:
      alloop init pets --classes cat,dog --images photos
      cd pets
      alloop pool add
      alloop labelstudio up          (or name your own server in alloop.toml)
      alloop run                     (run it again whenever people have labeled)
    """


def main() -> None:
    """Run the program and turn errors into messages and exit codes (README, "Exit codes")."""
    _occupy_standard_descriptors()
    # Python would look through all modules again and again while they load: a twentieth of a short command.
    gc.set_threshold(10_000, 50)
    # A path may hold bytes that are not UTF-8; stderr escapes them already.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = _flushed(_run())
    except (BrokenPipeError, SystemExit):
        # The reader of our output has closed it. In that case click and rich raise SystemExit. Nothing else does:
        # commands set their exit code through their context.
        _drop_output()
        code = NOBODY_READS
    sys.exit(code)


def _run() -> int:
    try:
        # The exit code if the command left through its context; any other return value is not an exit code.
        code = cli.main(prog_name="alloop", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo(f"Interrupted. {KEPT} You can run the same command again.", err=True)
        return 130
    except AlloopError as error:
        _show(error)
        return error.exit_code
    except (OSError, MemoryError) as error:
        known = _explain(error)
        if known is None:
            raise
        _show(known)
        return known.exit_code
    return code if isinstance(code, int) else 0


def _explain(error: OSError | MemoryError) -> AlloopError | None:
    """Return an error message for what the machine refused; None for any other error, which keeps its traceback."""
    if isinstance(error, MemoryError):
        return AlloopError(
            f"There is not enough memory{f': {error}' if str(error) else ''}.",
            "Close other programs, then run the command again.",
        )
    if isinstance(error, BrokenPipeError):
        return None
    if error.filename is not None:
        return AlloopError(f"{os.fsdecode(error.filename)}: {error.strerror}.", "Check the path and its permissions.")
    if error.errno in _SCARCE:
        return AlloopError(
            f"The system reports: {error.strerror}.", "Free some disk space or memory, then run the command again."
        )
    return None


def _flushed(code: int) -> int:
    """Write out all buffered output and return the exit code; 1 instead of 0 if the output could not be written."""
    try:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        _drop_output()
        if code == 0:
            click.echo(f"Error: The output could not be written: {error.strerror}.", err=True)
        return code or 1
    return code


def _occupy_standard_descriptors() -> None:
    """Open /dev/null for each standard stream that is closed.

    Otherwise the next file that alloop opens would get the stream's number, and printed text would go into that file.
    /dev/null is opened for reading, so that writing a result to a closed standard output still fails.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDONLY)  # gets the lowest number that is free
    sys.stdout = sys.stdout or os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    sys.stderr = sys.stderr or os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")


def _drop_output() -> None:
    """Discard output that could not be written, so that Python does not try again at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or not a file
            stream.flush()
            continue
        with contextlib.suppress(OSError, ValueError, AttributeError):
            os.dup2(nowhere, stream.fileno())


def _show(error: AlloopError) -> None:
    flags = [flag for flag in sys.argv if re.fullmatch(r"-[vq]+|--verbose", flag)]
    if sum(flag.count("v") if flag != "--verbose" else 1 for flag in flags) > 1:
        import traceback

        traceback.print_exc()
    if "--json" in sys.argv:
        import json

        with contextlib.suppress(OSError):  # the error may be that standard output cannot be written
            click.echo(json.dumps({"error": error.message, "hint": error.hint, "exit_code": error.exit_code}))
    click.echo(f"Error: {error}", err=True)


if __name__ == "__main__":
    main()
