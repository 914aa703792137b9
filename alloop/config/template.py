"""Text of the alloop.toml that `alloop init` writes: the settings that a user must decide, with comments."""

import json
from collections.abc import Sequence

from alloop.composition import DEFAULT_BACKEND


def render_config(
    name: str, classes: Sequence[str], images: Sequence[str], label_studio_url: str, backend: str = DEFAULT_BACKEND
) -> str:
    """Return a commented alloop.toml. JSON strings are valid TOML basic strings.

    Args:
        name: Name of the project.
        classes: Names of the classes.
        images: Folders, globs and files of images.
        label_studio_url: Address of Label Studio, written for this back end only.
        backend: Labeling back end.
    """
    text = f"""\
# Settings of this alloop workspace. A setting that is not here has a working default; the README lists more of them.
# An environment variable can override any setting: ALLOOP__LOOP__BATCH_SIZE=100

[project]
name = {_text(name)}
classes = {_list(classes)}        # classes can be added later; a class that was used cannot be removed
seed = 0

[pool]
images = {_list(images)}          # folders or globs; `alloop pool add` without paths adds these

[model]
backbone = "resnet50"             # `alloop backbones` lists some; timm:NAME | package.module:factory | pixels
weights = "DEFAULT"               # DEFAULT | none | IMAGENET1K_V1, … of torchvision | a local file
mode = "frozen"                   # frozen: train heads, in seconds | finetune: train the whole network, on a GPU

[loop]
batch_size = 50                   # images to ask about in each round
# label_budget = 1000             # stop at this number of labels

[acquisition]
strategy = "entropy-spread"       # `alloop strategies` lists them: entropy | margin | badge | typiclust | … | random
random_fraction = 0.1             # share of each batch drawn at random, for honest evaluation

[labeling]
{f"backend = {_text(backend)}":<33} # label-studio | csv (sheets to fill in, in sheets/) | oracle (answers from a file)
preannotate = false               # true: show the model's guess to annotators
"""
    if backend == "label-studio":
        text += f"""
[labeling.label_studio]
url = {_text(label_studio_url)}
# The token is read from LABEL_STUDIO_API_KEY, or from a file: api_key_file = "label-studio.token"

[labeling.images]
via = "local-files"               # local-files | upload | url
"""
    return text


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)


def _list(values: Sequence[str]) -> str:
    return "[" + ", ".join(_text(value) for value in values) + "]"
