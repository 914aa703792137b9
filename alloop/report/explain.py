"""Explanation of one image, in words and as a page with pictures."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from alloop.errors import PoolError
from alloop.loop.choosing.explanation import Asked, Automatic, Explanation
from alloop.pool.picture import picture_of
from alloop.records import ImageRef
from alloop.report.overview import Page, Picture, ReportSection, ReportTable, TableCell, write_page
from alloop.report.shown import Shown

SIDE = 320  # pixels of a picture's longer side


def describe(found: Explanation, shown: Shown) -> list[str]:
    """Return the lines for a terminal."""
    lines = [f"{found.sha256[:12]}  {found.path}", found.standing]
    lines += _describe_automatic(found.automatic)
    lines += [describe_query(asked) for asked in found.asked]
    if found.model is not None:
        lines.append(f"Scores of round {found.round_number} ({found.model}):")
    if found.probs:
        best = shown.prediction(found.probs)[:3]
        lines.append("  predicted: " + ", ".join(f"{part} {share}" for part, share in best))
    if found.suspect:
        lines.append("  It looks unlike the rest of the pool.")
    lines += [f"  {name}: {rank.value:.4f}, rank {rank.rank} of {rank.of}" for name, rank in found.ranks.items()]
    lines += [f"  near: {near.class_name} ({near.similarity:.3f})  {near.path}" for near in found.neighbors]
    return [*lines, f"  {found.note}"] if found.note else lines


def describe_query(asked: Asked) -> str:
    """Return the reason for a question in a sentence."""
    why = f"Round {asked.round_number} asked about it as number {asked.rank}: "
    if asked.strategy == "random":
        why += f"drawn uniformly ({asked.reason})"
    elif asked.reason == "manual":
        why += "asked for by hand (manual)"
    else:
        why += f"chosen by {asked.strategy} ({asked.reason})"
    if asked.score is not None:
        why += f", score {asked.score:.4f}"
    if asked.probability is not None:
        why += f", probability {asked.probability:.4g}"
    if asked.draw_number is not None and asked.draw_pool is not None:
        why += f", draw {asked.draw_number} from {asked.draw_pool}"
    return " ".join((f"{why}; {asked.status}.", *asked.notes))


def _describe_automatic(label: Automatic | None) -> list[str]:
    if label is None:
        return []
    return [
        f"Its label {label.class_name} is automatic, no person gave it: by {label.model}, look {label.look}, with "
        f"probability {label.probability:.4g} before calibration (accepted from {label.threshold:.4g} on). At most "
        f"{100 * label.max_error:g} % of these labels are wrong, with {100 * label.confidence:g} % confidence."
    ]


def write_explanation(found: Explanation, path: Path, shown: Shown) -> None:
    """Write the page as one self-contained file. Images that cannot be read are left out."""
    with tempfile.TemporaryDirectory() as folder:
        image = ImageRef(found.image_id, found.sha256, found.path, found.depth, is_admitted=True)
        pictures = _pictures([(image, "the image")], Path(folder), "image")
        near = [
            (
                ImageRef(0, each.sha256, each.path, each.depth, is_admitted=True),
                f"{each.class_name} ({each.similarity:.3f})",
            )
            for each in found.neighbors
        ]
        sections = [
            ReportSection("The image", found.path, pictures),
            ReportSection("Nearest labeled images", found.note, _pictures(near, Path(folder), "near")),
        ]
        notes = [found.standing, *_describe_automatic(found.automatic), *map(describe_query, found.asked)]
        write_page(Page(f"{found.sha256[:12]}", notes, _tables(found, shown), sections), path)


def _tables(found: Explanation, shown: Shown) -> list[ReportTable]:
    tables = []
    if found.probs:
        rows = [[TableCell(part), TableCell(share)] for part, share in shown.prediction(found.probs)]
        tables.append(ReportTable(f"Prediction of {found.model}", shown.heads, rows))
    if found.ranks:
        rows = [
            [TableCell(name), TableCell(f"{rank.value:.4f}"), TableCell(f"{rank.rank} of {rank.of}")]
            for name, rank in found.ranks.items()
        ]
        tables.append(ReportTable(f"Scores in round {found.round_number}", ["score", "value", "rank"], rows))
    return tables


def _pictures(images: Sequence[tuple[ImageRef, str]], folder: Path, name: str) -> list[Picture]:
    pictures = []
    for number, (image, words) in enumerate(images):
        place = folder / f"{name}{number}.png"
        try:
            small = picture_of(image)
        except (PoolError, MemoryError):
            continue
        small.thumbnail((SIDE, SIDE))
        small.save(place)
        pictures.append(Picture(words, place))
    return pictures
