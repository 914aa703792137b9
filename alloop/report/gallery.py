"""Pictures inside the report: small, in the file itself, and without the facts that a camera writes into its files."""

import base64
import dataclasses
import io
from collections.abc import Iterable

from PIL import Image

from alloop.errors import PoolError
from alloop.pool.picture import picture_of
from alloop.records import ImageRef

SIDE = 128  # pixels of the longer side
QUALITY = 72  # of JPEG; a picture then has at most about 15 KB


@dataclasses.dataclass(frozen=True, slots=True)
class Still:
    """Picture of an image, with two lines below it.

    Attributes:
        source: Picture as a data URI.
        name: Name of the file; empty if names are left out.
        guess: Prediction in words.
        said: Label or state in words.
        why: Reason for showing it; may be empty.
    """

    source: str
    name: str
    guess: str
    said: str
    why: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Shot:
    """Image to show, with its words, as in `Still`."""

    image: ImageRef
    guess: str
    said: str
    why: str = ""


def make_stills(shots: Iterable[Shot], *, with_names: bool = True) -> tuple[Still, ...]:
    """Return the pictures. Images that cannot be read are left out."""
    found = []
    for shot in shots:
        try:
            source = _shrink(picture_of(shot.image))
        except (PoolError, MemoryError):
            continue
        name = shot.image.path.rpartition("/")[2] if with_names else ""
        found.append(Still(source, name, shot.guess, shot.said, shot.why))
    return tuple(found)


def _shrink(picture: Image.Image) -> str:
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    bare = Image.new("RGB", picture.size)
    bare.paste(picture)  # Pillow writes comments of the original file, for example
    buffer = io.BytesIO()
    bare.save(buffer, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
