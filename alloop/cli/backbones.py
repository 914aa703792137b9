"""`alloop backbones`: published trunks worth trying."""

import dataclasses
import importlib.util
from typing import TYPE_CHECKING

import click

from alloop.cli._options import Session, common_options

if TYPE_CHECKING:
    from alloop.cli._tables import Lines
    from alloop.models.catalog import Published

_NOTES = """\
supervised: ImageNet accuracy of the network with its own classifier, which says little about its features.
linear, k-NN: ImageNet accuracy of a linear classifier and of nearest neighbours on frozen features. Numbers are
published ones; an empty cell means that no source is known. Any other name of torchvision or timm works, too.
Compare some on your own labels: alloop compare --backbones resnet50,resnet50@IMAGENET1K_V1"""


@click.command()
@common_options
def backbones(session: Session) -> None:
    """List published trunks worth trying.

    Shows the values for `[model] backbone` and `weights`, licence, size, features, resolution, published accuracies,
    and whether the weights are on this machine already. Nothing is downloaded.
    """
    from alloop.cli._tables import print_table, print_text
    from alloop.config.load import FILE_NAME
    from alloop.models.catalog import list_published

    has_workspace = (session.workspace / FILE_NAME).exists()
    model = session.project(check_schema=False).config.model if has_workspace else None
    chosen = set() if model is None else {(trunk.name, trunk.weights) for trunk in model.trunks}
    has_timm = importlib.util.find_spec("timm") is not None
    found = list_published()
    if session.as_json:
        session.show([_plain(trunk, chosen) for trunk in found])
    elif session.verbosity >= 0:
        print_table(
            _table(found, chosen, has_timm=has_timm), left=frozenset({"backbone", "weights", "licence", "file"})
        )
        for source in dict.fromkeys(trunk.source for trunk in found if trunk.source):
            names = ", ".join(trunk.name for trunk in found if trunk.source == source)
            print_text(f"{names}: {source}.")
        for trunk in found:
            if trunk.note:
                print_text(f"{_called(trunk)}: {trunk.note}.")
        print_text(_NOTES)


def _table(found: "tuple[Published, ...]", chosen: set[tuple[str, str]], *, has_timm: bool) -> "Lines":
    columns = [
        "backbone",
        "weights",
        "MB",
        "features",
        "pixels",
        "supervised %",
        "linear %",
        "k-NN %",
        "licence",
        "file",
    ]
    lines = [
        [
            (f"{trunk.name}{' ← set' if _is_set(trunk, chosen) else ''}", 0),
            (trunk.weights, 0),
            (f"{trunk.megabytes:.0f}", 0),
            (str(trunk.n_features), 0),
            ("any" if trunk.image_size is None else str(trunk.image_size), 0),
            *((_percent(value), 0) for value in (trunk.supervised, trunk.linear, trunk.knn)),
            (trunk.licence, 0),
            (_file(trunk, has_timm=has_timm), 0),
        ]
        for trunk in found
    ]
    return "", columns, lines


def _plain(trunk: "Published", chosen: set[tuple[str, str]]) -> dict[str, object]:
    plain = dataclasses.asdict(trunk)
    file = plain.pop("file")
    return {
        **plain,
        "file": None if file is None else str(file),
        "is_there": trunk.is_there,
        "needs_timm": trunk.needs_timm,
        "is_set": _is_set(trunk, chosen),
    }


def _is_set(trunk: "Published", chosen: set[tuple[str, str]]) -> bool:
    is_default = trunk.name == "resnet50" and trunk.weights == "IMAGENET1K_V2"
    return (trunk.name, trunk.weights) in chosen or (is_default and (trunk.name, "DEFAULT") in chosen)


def _called(trunk: "Published") -> str:
    return trunk.name if trunk.weights in {"DEFAULT", "none"} else f"{trunk.name}@{trunk.weights}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _file(trunk: "Published", *, has_timm: bool) -> str:
    if trunk.needs_timm and not has_timm:
        return "needs alloop[timm]"
    if trunk.file is None:
        return "nothing to load"
    return "here" if trunk.is_there else "to download"
