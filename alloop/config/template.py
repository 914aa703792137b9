"""The alloop.toml that `alloop init` writes: only what a user must decide, with what else there is in comments."""

import json
from collections.abc import Sequence


def render_config(name: str, classes: Sequence[str], images: Sequence[str], label_studio_url: str) -> str:
    """A commented alloop.toml. JSON strings are valid TOML basic strings."""
    return f"""\
# What alloop works on. Every setting that is not here has a default that works; the README lists them all.
# Any setting can also come from the environment: ALLOOP__LOOP__BATCH_SIZE=100

[project]
name = {_text(name)}
classes = {_list(classes)}        # you may add classes later; removing one would invalidate history
seed = 0

[pool]
images = {_list(images)}          # folders or globs; `alloop pool add` takes these when you name none

[model]
backbone = "resnet50"             # torchvision name | timm:NAME | package.module:factory
weights = "DEFAULT"               # DEFAULT | none | a local file
mode = "frozen"                   # frozen: heads in seconds | finetune: the whole network, better with a GPU

[loop]
batch_size = 50                   # images to ask about in each round
# label_budget = 1000             # stop when this many labels are there

[acquisition]
strategy = "entropy-spread"       # `alloop strategies` lists them: entropy | margin | badge | typiclust | … | random
random_fraction = 0.1             # share of each batch drawn at random, for honest evaluation

[labeling]
backend = "label-studio"          # label-studio | csv | oracle
preannotate = false               # true shows the model's guess to annotators

[labeling.label_studio]
url = {_text(label_studio_url)}
# The token is read from LABEL_STUDIO_API_KEY, or from a file: api_key_file = "label-studio.token"

[labeling.images]
via = "local-files"               # local-files | upload | url
"""


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)


def _list(values: Sequence[str]) -> str:
    return "[" + ", ".join(_text(value) for value in values) + "]"
