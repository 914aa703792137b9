"""`alloop simulate`: strategies against each other on labels that are known."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from alloop.cli._options import Session, common_options

if TYPE_CHECKING:
    from alloop.config.schema import Config
    from alloop.simulate.features_file import GivenData
    from alloop.simulate.run import SimulateSettings


@click.command()
@click.option(
    "--features",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="An .npz file with F [N, D], features of any model, and y [N], classes.",
)
@click.option(
    "--test",
    type=click.Path(path_type=Path, exists=True),
    help="Only measured on, in place of a random holdout; as --features.",
)
@click.option(
    "-s",
    "--strategies",
    default="random,entropy,default",
    show_default=True,
    help="Names between commas; NAME:setting=value changes a setting of [acquisition] for one of them.",
)
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="Repetitions of each strategy.")
@click.option("--batch", type=click.IntRange(min=1), help="Images asked for in a round.  [default: loop.batch_size]")
@click.option(
    "--rounds", type=click.IntRange(min=1), default=10, show_default=True, help="Batches, the first at random."
)
@click.option(
    "--random-fraction",
    type=click.FloatRange(min=0, max=1),
    default=0.0,
    show_default=True,
    help="Share of each batch drawn at random.",
)
@click.option(
    "--set", "values", multiple=True, metavar="SECTION.KEY=VALUE", help="Change a setting, as in alloop.toml."
)
@click.option("--jobs", type=click.IntRange(min=1), help="Runs at once, in processes.  [default: half of the cores]")
@click.option("--budget-minutes", type=click.FloatRange(min=0), help="Begin nothing new after this time.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Results.  [default: simulate/ here]")
@click.option("--json-out", type=click.Path(path_type=Path, dir_okay=False), help="Write every run as JSON here, too.")
@click.option("--device", help="auto, cpu, cuda, cuda:1 or mps; overrides [model] device.")
@common_options
def simulate(
    session: Session,
    features: Path | None,
    test: Path | None,
    strategies: str,
    seeds: int,
    batch: int | None,
    rounds: int,
    random_fraction: float,
    values: tuple[str, ...],
    jobs: int | None,
    budget_minutes: float | None,
    out: Path | None,
    json_out: Path | None,
    device: str | None,
) -> None:
    """Compare strategies on labels that are known, in the real loop.

    Each strategy runs in a workspace of its own, answered by an oracle; the settings of the workspace here count, if
    there is one. All strategies of a seed are measured on the same images and start from the same random batch.
    Finished runs are kept: after a kill, the same command goes on.
    """
    from alloop.cli._simulation import show, write_report
    from alloop.files import write_json
    from alloop.simulate.base import given_config, prepare_given, pure_config
    from alloop.simulate.cells import scratch_folder
    from alloop.simulate.curve_table import table_json, tabulate, write_tables
    from alloop.simulate.features_file import read_features
    from alloop.simulate.run import SimulateSettings, is_finished, parse_arms, plan_cells, to_json
    from alloop.simulate.run import simulate as run_simulation

    if features is None:
        raise click.UsageError("Name the data with --features FILE.npz.")
    flags: dict[str, dict[str, Any]] = {
        "acquisition": {"random_fraction": random_fraction},
        "loop": {} if batch is None else {"batch_size": batch},
    }
    config = _config(session, values, flags)
    data = read_features(features, test)
    config = pure_config(given_config(config, data))
    settings = SimulateSettings(
        arms=parse_arms(config, strategies.split(",")),
        seeds=seeds,
        rounds=rounds,
        out=(out or session.workspace / "simulate").absolute(),
        digest=data.digest,
        jobs=jobs or _default_jobs(),
        minutes=budget_minutes,
        device=device,
    )
    progress = session.progress()
    with scratch_folder(settings.out) as scratch:
        plans = plan_cells(settings, scratch / "base")
        if not is_finished(plans):
            prepare_given(scratch / "base", data, config, progress)
        simulation = run_simulation(settings, plans, progress)
    table = tabulate(simulation)
    write_tables(simulation, table, settings.out)
    result = {**to_json(simulation), "summary": table_json(table)}
    write_json(settings.out / "simulation.json", result)
    page = write_report(table, simulation, _about(data, settings), settings.out)
    if json_out is not None:
        write_json(json_out.absolute(), result)
    if session.as_json:
        session.show({**result, "page": str(page)})
    elif session.verbosity >= 0:
        show(table, simulation, page)


def _about(data: "GivenData", settings: "SimulateSettings") -> str:
    """What it was done on, in a sentence."""
    tested = "a random holdout" if data.test is None else f"{len(data.test.targets)} others"
    return (
        f"{len(data.pool.targets)} rows of {data.pool.features.shape[1]} features and {len(data.classes)} classes, "
        f"measured on {tested}; batches of {settings.arms[0].config.loop.batch_size}, the first one at random."
    )


def _config(session: Session, values: tuple[str, ...], flags: dict[str, dict[str, Any]]) -> "Config":
    """The workspace's settings, or the defaults without one; then --set, then flags."""
    from alloop.config.load import FILE_NAME, load_config, parse_value, set_values, validate_config
    from alloop.errors import ConfigError

    has_workspace = (session.workspace / FILE_NAME).exists()
    plain = validate_config({"project": {"classes": ["one", "other"]}}, "defaults")
    config = load_config(session.workspace) if has_workspace else plain
    changes: dict[str, dict[str, Any]] = {}
    for text in values:
        name, sign, value = text.partition("=")
        section, _, key = name.strip().partition(".")
        if not sign or not key or ("." in key and not section):
            raise ConfigError(f"--set {text}: write SECTION.KEY=VALUE.", "As in --set acquisition.beta=2.")
        _put(changes.setdefault(section, {}), config, section, key, parse_value(value.strip()))
    for section, given in flags.items():
        changes.setdefault(section, {}).update(given)
    return set_values(config, **changes)


def _put(table: dict[str, Any], config: "Config", section: str, key: str, value: Any) -> None:
    """Also [labeling.oracle] and its like: the rest of the inner table stays."""
    inner, _, last = key.partition(".")
    if not last:
        table[key] = value
        return
    before = getattr(getattr(config, section, None), inner, None)
    known = before.model_dump(mode="json") if before is not None else {}
    table[inner] = {**known, **table.get(inner, {}), last: value}


def _default_jobs() -> int:
    import os

    return max(1, (os.cpu_count() or 1) // 2)
