"""`alloop compare`: comparison of methods on the same labels."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from alloop.cli._options import OutFile, Session, common_options
from alloop.composition import CALIBRATORS

if TYPE_CHECKING:
    from alloop.config.schema import Config
    from alloop.simulate.compare import CompareSettings
    from alloop.simulate.labeled import LabeledImages


@click.command()
@click.option(
    "-m", "--methods", help="Methods, separated by commas: SL1H,4HML,LS.  [default: all that fit the settings]"
)
@click.option(
    "-b",
    "--backbones",
    help="Compare trunks instead of methods, separated by commas: resnet50,resnet50@IMAGENET1K_V1,A+B (side by side).",
)
@click.option("--list", "is_list", is_flag=True, help="List the methods and exit.")
@click.option(
    "--seeds", type=click.IntRange(min=1), help="Repetitions of each method.  [default: 3; with --backbones: 1]"
)
@click.option("--budget-minutes", type=click.FloatRange(min=0), help="Start no new run after this many minutes.")
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
    "--split",
    type=click.Choice(["stratified", "holdout"]),
    default="stratified",
    show_default=True,
    help="Images to measure on: a new random part for each seed, or the workspace's holdout.",
)
@click.option("-n", "--labels", type=click.IntRange(min=2), help="Images to train on.  [default: all but the held-out]")
@click.option(
    "--calibration",
    default="temperature",
    show_default=True,
    help=f"Post-hoc calibrators, separated by commas: {', '.join(CALIBRATORS)}.",
)
@click.option(
    "--ood",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder of images that show none of the classes; measures how well each score detects them.",
)
@click.option(
    "--odin-images",
    type=click.IntRange(min=0),
    default=1000,
    show_default=True,
    help="With --ood: number of images of each kind that are scored by ODIN, which is slow; 0: none.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the results.  [default: compare/ in the workspace]",
)
@click.option("--json-out", type=OutFile(), help="Also write the result as JSON to this file; - is standard output.")
@click.option("--device", help="auto, cpu, cuda, cuda:1 or mps; overrides [model] device.")
@common_options
def compare(
    session: Session,
    methods: str | None,
    backbones: str | None,
    is_list: bool,
    seeds: int | None,
    budget_minutes: float | None,
    folder: Path | None,
    table: Path | None,
    split: str,
    labels: int | None,
    calibration: str,
    ood: Path | None,
    odin_images: int,
    out: Path | None,
    json_out: Path | None,
    device: str | None,
) -> None:
    """Train several methods on the same labels and compare them.

    Uses the labels of the workspace, or labeled images from --folder or --csv. If the current folder is a workspace,
    its [model] and [train] are used. For each seed, all methods are trained on the same images. Accuracy, ECE, NLL and
    Brier score are measured on images that nothing was fitted to, before and after post-hoc calibration. Finished runs
    are kept. If the command is interrupted, run it again to continue.

    With --backbones, trunks are compared instead, with the heads of [model] and the calibrator of [calibration], by
    nested cross-validation: five outer folds are only measured on.
    """
    from alloop.cli._comparison import print_tables, write_report
    from alloop.pool.depth import share_depth
    from alloop.simulate.compare import compare as run_comparison
    from alloop.simulate.methods import METHODS, list_methods
    from alloop.simulate.ood import read_strangers
    from alloop.simulate.summary import summarize, to_json, write_tables

    if folder is not None and table is not None:
        raise click.UsageError("--folder and --csv exclude each other.")
    config, data = _load(session, folder, table, is_list)
    if is_list or data is None:
        possible = {method.name for method in list_methods(config)}
        known = [(m.name, m.summary, m.name in possible) for m in METHODS.values()]
        lines = [f"{name:<16} {summary}{'' if ok else '  (not with these settings)'}" for name, summary, ok in known]
        session.show([{"name": name, "summary": text, "possible": ok} for name, text, ok in known], "\n".join(lines))
        return
    if backbones is not None:
        _refuse_others()
        _compare_trunks(
            session, config, data, _names(backbones), seeds or 1, out, labels, budget_minutes, device, json_out
        )
        return
    settings = _settings(session, config, methods, seeds or 3, out, calibration, split, labels, budget_minutes, device)
    if ood is not None:
        may_be_cut = config.pool.truncated == "accept"
        strange = read_strangers(ood, data.images, session.progress(), may_be_cut=may_be_cut)
        images, strangers = share_depth(data.images, strange)
        data = dataclasses.replace(data, images=images)
        settings = dataclasses.replace(settings, strangers=strangers, odin_images=odin_images)
    comparison = run_comparison(settings, data, session.executor(), session.progress())
    rows = summarize(comparison)
    write_tables(comparison, rows, settings.out)
    page = write_report(settings, data, comparison, rows)
    if _is_said(session, to_json(comparison, rows), page, json_out):
        print_tables(settings, comparison, rows, page)


def _compare_trunks(
    session: Session,
    config: "Config",
    data: "LabeledImages",
    names: list[str],
    seeds: int,
    out: Path | None,
    labels: int | None,
    minutes: float | None,
    device: str | None,
    json_out: Path | None,
) -> None:
    from alloop.cli._trunks import show, write_results
    from alloop.simulate.compare_trunks import TrunksSettings, compare_trunks, find_contenders, to_json

    folder, cache = _places(session, out)
    contenders = find_contenders(config, names, cache)
    settings = TrunksSettings(contenders, seeds, folder, cache, labels, minutes, device)
    comparison = compare_trunks(settings, data, session.executor(), session.progress())
    page = write_results(settings, data, comparison)
    if _is_said(session, to_json(comparison), page, json_out):
        show(settings, data, comparison, page)


def _refuse_others() -> None:
    """Refuse flags that belong to a comparison of methods."""
    context = click.get_current_context()
    given = [
        flag
        for flag, name in (
            ("--methods", "methods"),
            ("--split", "split"),
            ("--calibration", "calibration"),
            ("--ood", "ood"),
            ("--odin-images", "odin_images"),
        )
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
    ]
    if given:
        raise click.UsageError(f"{given[0]} belongs to a comparison of methods; --backbones compares trunks.")


def _is_said(session: Session, result: "dict[str, Any]", page: Path, json_out: Path | None) -> bool:
    """Write the result as JSON where it was asked for; return whether it is to be shown in words."""
    from alloop.files import is_stdout, write_json

    if json_out is not None:
        write_json(json_out.absolute(), result)
    if session.as_json:
        session.show({**result, "page": str(page)}, written=json_out)
    return not session.as_json and session.verbosity >= 0 and not (json_out is not None and is_stdout(json_out))


def _load(
    session: Session, folder: Path | None, table: Path | None, is_list: bool
) -> "tuple[Config, LabeledImages | None]":
    """Return settings and images. Without a workspace, --folder and --csv use the default settings."""
    from alloop.config.load import FILE_NAME, load_config, set_values, validate_config
    from alloop.simulate.labeled import read_csv, read_folder, read_workspace

    has_workspace = (session.workspace / FILE_NAME).exists()
    if folder is None and table is None and not (is_list and not has_workspace):
        project = session.project()
        return project.config, None if is_list else read_workspace(project)
    plain = validate_config({"project": {"classes": ["one", "other"]}}, "defaults")
    config = load_config(session.workspace) if has_workspace else plain
    if is_list:
        return config, None
    progress, may_be_cut = session.progress(), config.pool.truncated == "accept"
    if folder is not None:
        data = read_folder(folder, progress, may_be_cut=may_be_cut)
    else:
        data = read_csv(Path(str(table)), progress, may_be_cut=may_be_cut)
    return set_values(config, project={"classes": list(data.classes)}), data


def _settings(
    session: Session,
    config: "Config",
    methods: str | None,
    seeds: int,
    out: Path | None,
    calibration: str,
    split: str,
    labels: int | None,
    minutes: float | None,
    device: str | None,
) -> "CompareSettings":
    from alloop.errors import ConfigError, did_you_mean
    from alloop.simulate.compare import CompareSettings
    from alloop.simulate.methods import find_methods

    results, cache = _places(session, out)
    calibrators = tuple(dict.fromkeys(_names(calibration)))
    for name in calibrators:
        if name not in CALIBRATORS:
            raise ConfigError(f"There is no calibrator '{name}'{did_you_mean(name, CALIBRATORS)}")
    return CompareSettings(
        config=config,
        methods=find_methods(config, _names(methods or "")),
        seeds=seeds,
        out=results,
        cache=cache,
        calibrators=tuple(name for name in calibrators if name != "none"),
        split="holdout" if split == "holdout" else "stratified",
        n_labels=labels,
        minutes=minutes,
        device=device,
    )


def _places(session: Session, out: Path | None) -> tuple[Path, Path]:
    """Return the folders of results and of the cache.

    A workspace's cache already holds features, and a backbone of the user's own lies beside it.
    """
    from alloop.config.load import FILE_NAME

    has_workspace = (session.workspace / FILE_NAME).exists()
    cache = (session.workspace if out is None or has_workspace else out).absolute() / "cache"
    return (out or session.workspace / "compare").absolute(), cache


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
