"""Predict images with model.onnx of this folder: `python predict.py photo.jpg folder/*.png`.

Needs onnxruntime, NumPy and Pillow only. Prints one line per image: file, class, its probability, entropy in nats.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps, JpegImagePlugin

HERE = Path(__file__).resolve().parent


def prepare(file: str, rule: dict[str, Any]) -> Any:
    """Return the pixels of a file for one input of the model: uint8 [3, S, S], as preprocess.json says."""
    image, shown = load(file, rule)
    if image.mode.startswith(("I", "F")):
        raise ValueError("it has more than 8 bits a channel")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    image, size, shorter = image.convert("RGB"), rule["image_size"], rule["resize_shorter_side"]
    width, height = shown[2] - shown[0], shown[3] - shown[1]
    if max(width, height) > rule["strip"] * min(width, height) and shorter:  # keep only the middle of a strip
        kept = -(-2 * size * min(width, height) // shorter)
        image = middle(image, min(width, kept), min(height, kept))
        width, height, shown = image.width, image.height, (0, 0, image.width, image.height)
    to = resized(width, height, rule)
    image = image.resize(to, getattr(Image.Resampling, rule["interpolation"].upper()), box=shown)
    return np.asarray(middle(image, size, size)).transpose(2, 0, 1)


def load(file: str, rule: dict[str, Any]) -> Any:
    """Return the upright image, and the part that shows the picture. Large JPEG is reduced while it is decoded."""
    image: Any = Image.open(file)
    orientation = image.getexif().get(0x0112, 1)
    step = -1 if orientation in (5, 6, 7, 8) else 1
    width, height = image.size[::step]
    scale = reduction(image, width, height, rule)
    if scale > 1:
        image.draft(image.mode, (image.width // scale, image.height // scale))
    image = ImageOps.exif_transpose(image)
    left = image.width - width / scale if orientation in (2, 3, 6, 7) else 0
    top = image.height - height / scale if orientation in (3, 4, 7, 8) else 0
    return image, (left, top, left + width / scale, top + height / scale)


def reduction(image: Any, width: int, height: int, rule: dict[str, Any]) -> int:
    """Return 1, 2, 4 or 8: how far a decoder of JPEG may reduce an upright image of this size."""
    is_plain = isinstance(image, JpegImagePlugin.JpegImageFile) and image.mode in ("RGB", "L")
    if not is_plain or image.info.get("adobe_transform") == 0 or [layer[0] for layer in image.layer] == [82, 71, 66]:
        return 1
    is_strip = rule["resize_shorter_side"] and max(width, height) > rule["strip"] * min(width, height)
    if is_strip or rule["interpolation"] == "nearest":
        return 1
    to = resized(width, height, rule)
    spare = min(width // to[0], height // to[1]) // rule["jpeg_spare"]
    return max(scale for scale in (1, 2, 4, 8) if scale <= max(1, spare))


def resized(width: float, height: float, rule: dict[str, Any]) -> tuple[int, int]:
    """Return the size to which an image of this size is resized."""
    shorter, size = rule["resize_shorter_side"], rule["image_size"]
    if not shorter:
        return size, size
    longer = int(shorter * max(width, height) / min(width, height))
    return (shorter, longer) if width <= height else (longer, shorter)


def middle(image: Any, width: int, height: int) -> Any:
    """Return a box from the middle of an image."""
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


def main(files: list[str]) -> int:
    """Print the prediction of each file; return 1 if a file could not be read."""
    rule = json.loads((HERE / "preprocess.json").read_text("utf-8"))
    classes = (HERE / "classes.txt").read_text("utf-8").splitlines()
    session, failed = onnxruntime.InferenceSession(HERE / "model.onnx"), 0
    for file in files:
        try:
            pixels = {one["name"]: prepare(file, one)[None] for one in rule["inputs"]}
        except Exception as error:
            print(f"{file}\tcannot be read: {error}", file=sys.stderr)
            failed = 1
            continue
        log_probs = session.run(None, pixels)[0][0]
        entropy = -(np.exp(log_probs) * log_probs).sum()
        top = int(log_probs.argmax())
        print(f"{file}\t{classes[top]}\t{np.exp(log_probs[top]):.6f}\t{entropy:.6f}")
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
