"""Predict images with model.onnx of this folder: `python predict.py photo.jpg folder/*.png`.

Needs onnxruntime, NumPy and Pillow only. Prints one line per image: file, class, its probability, entropy in nats.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

HERE = Path(__file__).resolve().parent


def prepare(file: str, rule: dict[str, Any]) -> Any:
    """Return the pixels of a file as the model takes them: uint8 [3, S, S], as preprocess.json says."""
    image: Any = ImageOps.exif_transpose(Image.open(file))
    if image.mode.startswith(("I", "F")):
        raise ValueError("it has more than 8 bits a channel")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    image, size, shorter = image.convert("RGB"), rule["image_size"], rule["resize_shorter_side"]
    width, height = image.size
    if max(width, height) > rule["strip"] * min(width, height) and shorter:  # keep only the middle of a strip
        kept = -(-2 * size * min(width, height) // shorter)
        image = middle(image, min(width, kept), min(height, kept))
        width, height = image.size
    short, long = min(width, height), max(width, height)
    scaled = int(shorter * long / short)
    to = (size, size) if not shorter else (shorter, scaled) if width <= height else (scaled, shorter)
    image = image.resize(to, getattr(Image.Resampling, rule["interpolation"].upper()))
    return np.asarray(middle(image, size, size)).transpose(2, 0, 1)


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
            pixels = prepare(file, rule)
        except Exception as error:
            print(f"{file}\tcannot be read: {error}", file=sys.stderr)
            failed = 1
            continue
        log_probs = session.run(None, {"images": pixels[None]})[0][0]
        entropy = -(np.exp(log_probs) * log_probs).sum()
        top = int(log_probs.argmax())
        print(f"{file}\t{classes[top]}\t{np.exp(log_probs[top]):.6f}\t{entropy:.6f}")
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
