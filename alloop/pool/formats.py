"""Names of image formats that Pillow alone does not read, with a way out for the user."""

import functools
import importlib
import io

from PIL.TiffImagePlugin import ImageFileDirectory_v2

_SAMPLES, _BITS, _COMPRESSION = 277, 258, 259  # TIFF tags
_CONVERT = "convert it to JPEG, PNG or TIFF"
# First bytes of the formats whose damaged files we can name.
_SIGNATURES = {
    b"\xff\xd8": "JPEG",
    b"\x89PNG": "PNG",
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"RIFF": "WebP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
}
# Position of the bytes, the bytes, and the message about such a file.
_OTHERS = (
    (0, b"\xff\x0a", f"a JPEG XL picture, which alloop does not read; {_CONVERT}"),
    (4, b"JXL \r\n\x87\n", f"a JPEG XL picture, which alloop does not read; {_CONVERT}"),
    (4, b"ftypavi", "an AVIF picture, which this Pillow does not read; pip install --upgrade pillow"),
    (4, b"ftypcrx", f"a camera's raw picture (CR3), which alloop does not read; {_CONVERT}"),
    (0, b"FUJIFILMCCD-RAW", f"a camera's raw picture (RAF), which alloop does not read; {_CONVERT}"),
    (0, b"IIRO", f"a camera's raw picture (ORF), which alloop does not read; {_CONVERT}"),
    (0, b"IIU\0", f"a camera's raw picture (RW2), which alloop does not read; {_CONVERT}"),
    (128, b"DICM", f"a DICOM file, which alloop does not read; {_CONVERT}"),
    (0, b"%PDF", "a PDF document, not an image"),
    (0, b"<!DOCTYPE html", "a web page, not an image; perhaps a download that failed"),
    (0, b"<html", "a web page, not an image; perhaps a download that failed"),
    (0, b"<svg", f"a drawing (SVG), not an image of pixels; {_CONVERT}"),
)
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


def prepare(data: bytes) -> None:
    """Enable Pillow to read HEIC if the file is one and `pillow-heif` is installed."""
    if _is_heif(data):
        _reads_heif()


def why_unreadable(data: bytes) -> str:
    """Return the reason, and a way out, for a file that Pillow cannot open."""
    if _is_heif(data):
        if _reads_heif():
            return "truncated or damaged: begins like a HEIC file, but cannot be read"
        return "a HEIC picture (iPhones write them); pip install 'alloop[heif]' reads them, then add it again"
    known = next((words for at, mark, words in _OTHERS if data[at : at + len(mark)].lower() == mark.lower()), None)
    if known is not None:
        return known
    name = next((name for signature, name in _SIGNATURES.items() if data.startswith(signature)), None)
    if name is None:
        return "not an image, or in a format that alloop does not read"
    layout = _tiff_layout(data) if name == "TIFF" else None
    return layout or f"truncated or damaged: begins like a {name} file, but its header cannot be read"


def _is_heif(data: bytes) -> bool:
    return data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS


@functools.cache
def _reads_heif() -> bool:
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except ImportError:
        return False
    return True


def _tiff_layout(data: bytes) -> str | None:
    """Describe bands, bits and compression of an intact TIFF that Pillow cannot show; None if its tags are damaged."""
    try:
        file = io.BytesIO(data)
        header = file.read(8)
        tags = ImageFileDirectory_v2(header + (file.read(8) if header[2] == 43 else b""))
        file.seek(tags.next)
        tags.load(file)
        bands, bits = int(tags[_SAMPLES]), tags.get(_BITS, (1,))
        compression = int(tags.get(_COMPRESSION, 1))
    except Exception:  # damaged files make Pillow's plugins raise nearly anything
        return None
    depth = "/".join(str(n) for n in dict.fromkeys(bits if isinstance(bits, tuple) else (bits,)))
    return (
        f"a TIFF of {bands} band{'s' * (bands != 1)} of {depth} bits (compression {compression}), which Pillow cannot "
        "show as one picture; save the bands to look at as a gray or RGB TIFF or PNG"
    )
