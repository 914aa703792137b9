"""`alloop simulate`: comparison of strategies on known labels."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from alloop.cli._options import OutFile, Session, common_options

if TYPE_CHECKING:
    from alloop.config.schema import Config
    from alloop.simulate.labeled import LabeledImages


@click.command()
@click.option(
    "--features",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="An .npz file with F [N, D] (features of any model), y [N] (classes) and, if real people answered, "
    "annotators [N, P].",
)
@click.option(
    "--folder",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Labeled images, a folder per class.",
)
@click.option(
    "--csv",
    "table",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A CSV with the columns file and label.",
)
@click.option(
    "--test",
    type=click.Path(path_type=Path, exists=True),
    help="Images to measure on, instead of a random holdout: .npz with --features, else a folder per class or a CSV.",
)
@click.option(
    "-s",
    "--strategies",
    default="random,entropy,default",
    show_default=True,
    help="Strategies, separated by commas; NAME:setting=value changes a setting of [acquisition] for that strategy.",
)
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="Repetitions of each strategy.")
@click.option(
    "--batch", type=click.IntRange(min=1), help="Images to ask about in a round.  [default: [loop] batch_size]"
)
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="Number of batches; the first is drawn at random.",
)
@click.option(
    "--random-fraction",
    type=click.FloatRange(min=0, max=1),
    default=0.0,
    show_default=True,
    help="Share of each batch drawn at random.",
)
@click.option(
    "--annotators-per-image",
    type=click.IntRange(min=1),
    help="People asked about each image; the majority counts.  [default: [labeling] annotations_per_image]",
)
@click.option(
    "--set", "values", multiple=True, metavar="SECTION.KEY=VALUE", help="Change a setting, as in alloop.toml."
)
@click.option("--jobs", type=click.IntRange(min=1), help="Number of processes.  [default: half of the cores]")
@click.option("--budget-minutes", type=click.FloatRange(min=0), help="Start no new run after this many minutes.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the results.  [default: simulate/ in the workspace]",
)
@click.option("--json-out", type=OutFile(), help="Also write every run as JSON to this file; - is standard output.")
@click.option("--device", help="auto, cpu, cuda, cuda:1 or mps; overrides [model] device.")
@common_options
def simulate(
    session: Session,
    features: Path | None,
    folder: Path | None,
    table: Path | None,
    test: Path | None,
    strategies: str,
    seeds: int,
    batch: int | None,
    rounds: int,
    random_fraction: float,
    annotators_per_image: int | None,
    values: tuple[str, ...],
    jobs: int | None,
    budget_minutes: float | None,
    out: Path | None,
    json_out: Path | None,
    device: str | None,
) -> None:
    """Compare strategies on known labels, in the real loop.

    Uses the labels of the workspace, or labeled images (--folder, --csv), or features of any model (--features). Each
    strategy runs in a workspace of its own, answered by an oracle. If the current folder is a workspace, its settings
    are used. For each seed, all strategies are measured on the same images and start from the same random batch.
    Finished runs are kept. If the command is interrupted, run it again to continue.
    """
    from alloop.cli._simulation import show, write_report
    from alloop.files import from_folder, is_stdout, write_json
    from alloop.simulate.base import given_source, image_source
    from alloop.simulate.cells import scratch_folder
    from alloop.simulate.curve_table import table_json, tabulate, write_tables
    from alloop.simulate.features_file import read_features
    from alloop.simulate.run import SimulateSettings, is_finished, parse_arms, plan_cells, to_json
    from alloop.simulate.run import simulate as run_simulation

    if sum(place is not None for place in (features, folder, table)) > 1:
        raise click.UsageError("--features, --folder and --csv exclude each other.")
    flags: dict[str, dict[str, Any]] = {
        "acquisition": {"random_fraction": random_fraction},
        "loop": {} if batch is None else {"batch_size": batch},
        "labeling": {} if annotators_per_image is None else {"annotations_per_image": annotators_per_image},
    }
    config = _config(session, values, flags, needed=features is None and folder is None and table is None)
    results = (out or session.workspace / "simulate").absolute()
    progress = session.progress()
    with scratch_folder(results) as scratch:
        if features is not None:
            source = given_source(config, read_features(features, test), scratch)
        else:
            # The workspace's cache already holds features.
            cache = (session.workspace if out is None or _has_workspace(session) else out).absolute() / "cache"
            named = config.evaluation.test
            tested = test or (None if named is None else from_folder(session.workspace, named))
            source = image_source(config, _images(session, config, folder, table), tested, cache, scratch, device)
        settings = SimulateSettings(
            arms=parse_arms(source.config, strategies.split(",")),
            seeds=seeds,
            rounds=rounds,
            out=results,
            digest=source.digest,
            jobs=jobs or _default_jobs(),
            minutes=budget_minutes,
            device=device,
        )
        plans = plan_cells(settings, source.base)
        if not is_finished(plans):
            source.prepare(session.executor(), progress)
        simulation = run_simulation(settings, plans, session.executor(), progress)
    curves = tabulate(simulation)
    write_tables(simulation, curves, results)
    result = {**to_json(simulation), "rows": source.names, "summary": table_json(curves)}
    write_json(results / "simulation.json", result)
    page = write_report(curves, simulation, source.about, results)
    if json_out is not None:
        write_json(json_out.absolute(), result)
    if session.as_json:
        session.show({**result, "page": str(page)}, written=json_out)
    elif session.verbosity >= 0 and not (json_out is not None and is_stdout(json_out)):
        show(curves, simulation, page)


def _has_workspace(session: Session) -> bool:
    from alloop.config.load import FILE_NAME

    return (session.workspace / FILE_NAME).exists()


def _images(session: Session, config: "Config", folder: Path | None, table: Path | None) -> "LabeledImages":
    """Read the labeled images of --folder, of --csv, or of the workspace."""
    from alloop.simulate.labeled import read_csv, read_folder, read_workspace

    may_be_cut = config.pool.truncated == "accept"
    if folder is not None:
        return read_folder(folder, session.progress(), may_be_cut=may_be_cut)
    if table is None:
        return read_workspace(session.project())
    return read_csv(table, session.progress(), config.labeling.oracle.columns, may_be_cut=may_be_cut)


def _config(session: Session, values: tuple[str, ...], flags: dict[str, dict[str, Any]], *, needed: bool) -> "Config":
    """Return the settings of the workspace (or the defaults, if no workspace is needed), changed by --set and flags."""
    from alloop.config.load import load_config, parse_value, set_values, validate_config
    from alloop.errors import ConfigError

    plain = validate_config({"project": {"classes": ["one", "other"]}}, "defaults")
    config = load_config(session.workspace) if needed or _has_workspace(session) else plain
    changes: dict[str, dict[str, Any]] = {}
    for text in values:
        name, sign, value = text.partition("=")
        section, _, key = name.strip().partition(".")
        if not sign or not key or ("." in key and not section):
            raise ConfigError(f"--set {text}: write SECTION.KEY=VALUE.", "Example: --set acquisition.beta=2.")
        _put(changes.setdefault(section, {}), config, section, key, parse_value(value.strip()))
    for section, given in flags.items():
        changes.setdefault(section, {}).update(given)
    return set_values(config, **changes)


def _put(table: dict[str, Any], config: "Config", section: str, key: str, value: Any) -> None:
    """Set a value; in a nested section such as [labeling.oracle], keep the other settings."""
    inner, _, last = key.partition(".")
    if not last:
        table[key] = value
        return
    before = getattr(getattr(config, section, None), inner, None)
    known = before.model_dump(mode="json") if before is not None else {}
    table[inner] = {**known, **table.get(inner, {}), last: value}


def _default_jobs() -> int:
    from alloop.machine import usable_cores

    return max(1, usable_cores() // 2)
