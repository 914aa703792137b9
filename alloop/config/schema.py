"""One frozen model per table of alloop.toml: names, types, defaults and units, each said once."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from alloop.composition import (
    CLASSIFICATION,
    DEFAULT_BACKEND,
    DEFAULT_STRATEGY,
    check_backend,
    check_composition,
    check_strategy,
    check_strategy_name,
)
from alloop.names import hidden_signs, look

PositiveInt = Annotated[int, Field(ge=1, lt=2**63)]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A table. Unknown keys are refused, values are not coerced from other types, and nothing changes after loading.

    Infinite numbers and nan are refused: each round stores its settings as JSON, which cannot hold them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=(), allow_inf_nan=False)


class ProjectConfig(Section):
    """`[project]`: what is being taught."""

    name: Annotated[str, Field(min_length=1, max_length=40)] = "alloop"
    classes: tuple[str, ...] = Field(strict=False)
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    @property
    def task(self) -> str:
        """Name of the task. Not a setting yet: there is only one."""
        return CLASSIFICATION

    @model_validator(mode="after")
    def _check_classes(self) -> "ProjectConfig":
        if len(self.classes) < 2:
            raise ValueError("a classifier needs at least two classes")
        blank = [name for name in self.classes if not name.strip() or name != name.strip()]
        if blank:
            raise ValueError(f"class names must not be empty or padded with spaces: {blank[0]!r}")
        # Folder-per-class export, CSV cells and Label Studio's XML all carry class names.
        odd = [n for n in self.classes if re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029/\\]", n) or n in {".", ".."}]
        if odd:
            raise ValueError(f"class names must not contain slashes or control characters, or be dots: {odd[0]!r}")
        _check_look(self.classes)
        return self


def _check_look(classes: tuple[str, ...]) -> None:
    """Refuse names that look the same: nobody could tell which of the two classes an answer means."""
    for name in classes:
        if hidden := hidden_signs(name):
            raise ValueError(f"class {name!r} holds an invisible character ({', '.join(hidden)}); remove it")
    seen: dict[str, str] = {}
    for name in classes:
        other = seen.setdefault(look(name), name)
        if other is name:
            continue
        if other == name:
            raise ValueError(f"class {name!r} is named twice")
        raise ValueError(f"classes {other!a} and {name!a} look the same, {name!r}; keep one of the two")


class DatabaseConfig(Section):
    """`[database]`: any SQLAlchemy URL; empty means `alloop.db` in the workspace."""

    url: str = ""


class PoolConfig(Section):
    """`[pool]`: which images there are, and which of them are near copies."""

    images: tuple[str, ...] = Field(default=(), strict=False)  # folders or globs, `alloop pool add` without arguments
    near_duplicate_distance: Annotated[int, Field(ge=0, le=16)] = 6  # bits of 64 (benchmarks/near_duplicates)
    near_duplicates: bool = True  # False: every image is its own group
    max_pixels: PositiveInt = 178_956_970  # larger images are refused as decompression bombs
    truncated: Literal["refuse", "accept"] = "refuse"  # files that end too early; accept: read as far as they go


class ModelConfig(Section):
    """`[model]`: what predicts."""

    backbone: str = "resnet50"  # torchvision name | timm:NAME | package.module:factory | features:D (given, D of them)
    weights: str = "DEFAULT"  # DEFAULT | none | a local .safetensors or .pth state dict
    mode: Literal["frozen", "finetune"] = "frozen"
    uncertainty: Literal["multi-head", "ensemble", "mc-dropout", "single"] = "multi-head"
    members: PositiveInt | None = None  # None: 4 heads, 5 networks of an ensemble, 20 dropout passes; single: always 1
    heads: PositiveInt = 1  # of each network of an ensemble, or under dropout
    head_weights: Literal["multi", "same"] = "multi"  # each head weighs its own classes strongly, or all weigh alike
    dropout: Annotated[float, Field(ge=0, lt=1)] = (
        0.25  # chance of a feature to be dropped before the heads, mc-dropout
    )
    consistent_masks: bool = False  # mc-dropout: one mask a pass for the whole pool instead of one for each image
    image_size: Annotated[int, Field(ge=8)] | None = None  # pixels; None: what the weights were trained with
    device: str = "auto"  # auto | cpu | cuda | cuda:N | mps

    @model_validator(mode="after")
    def _check_given(self) -> "ModelConfig":
        if self.backbone.startswith("features:"):
            if not re.fullmatch(r"features:[1-9][0-9]*", self.backbone):
                raise ValueError(
                    f"backbone {self.backbone!r} must name how many features are given, as in features:1280"
                )
            if self.mode == "finetune":
                raise ValueError("given features have no trunk that could be fine-tuned; take mode = 'frozen'")
        return self

    @property
    def n_networks(self) -> int:
        """Trained one after another."""
        return (self.members or 5) if self.uncertainty == "ensemble" else 1

    @property
    def n_heads(self) -> int:
        """Of each network."""
        if self.uncertainty == "multi-head":
            return self.members or 4
        return 1 if self.uncertainty == "single" else self.heads

    @property
    def n_passes(self) -> int:
        """Of MC dropout; 1 without it."""
        return (self.members or 20) if self.uncertainty == "mc-dropout" else 1

    @property
    def n_members(self) -> int:
        """M: predictors whose mean is the prediction."""
        return self.n_networks * self.n_heads * self.n_passes


class TrainConfig(Section):
    """`[train]`: how it learns. None means the tuned default of the mode (benchmarks/recipe)."""

    epochs: PositiveInt | None = None  # finetune: passes over the labels, at most; frozen: steps of the solver, at most
    batch_size: PositiveInt | None = None  # images in memory at once, and of one update in finetune mode
    learning_rate: Annotated[float, Field(gt=0)] | None = (
        None  # of the heads, finetune mode only; the trunk's is a tenth
    )
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    loss_scale: Literal["mean", "sum"] = "mean"  # the multi-head loss is divided by M + 1, or not
    validation_share: Annotated[float, Field(gt=0, lt=0.5)] = 0.15  # of the training labels, finetune mode only
    patience: PositiveInt = 10  # epochs without a better validation NLL before stopping, finetune mode only
    workers: Annotated[int, Field(ge=0)] = 2  # processes that decode images
    loss: Literal[
        "cross-entropy",
        "label-smoothing",
        "mbls",
        "focal",
        "flsd-53",
        "entropy",
        "entropy-hinge",
        "mmce",
        "dca",
        "logit-norm",
    ] = "cross-entropy"
    loss_parameters: dict[str, float] = {}  # by name; what is not named has the default of alloop/composition.py
    class_weights: Literal["none", "balanced"] = "none"  # balanced: N / (K n_k), the mean over the labels is 1
    mixing: Literal["none", "mixup", "cutmix", "either"] = "none"  # frozen mode: mixup of features only
    mixing_alpha: Annotated[float, Field(gt=0)] | None = None  # a of λ ~ Beta(a, a); None: 0.2 (mixup), 1.0 (cutmix)
    mixing_probability: Share | None = None  # of a batch to be mixed; None: 1.0, of cutmix 0.5


class CalibrationConfig(Section):
    """`[calibration]`: what is fitted to the labeled holdout so that probabilities hold."""

    # auto: the lowest cross-validated NLL among those with images enough; isotonic needs 200, the others 50
    method: Literal["temperature", "none", "platt", "isotonic", "histogram-width", "histogram-mass", "auto"] = (
        "temperature"
    )


class LoopConfig(Section):
    """`[loop]`: the size of a round and when to stop."""

    batch_size: PositiveInt = 50  # queries per round, holdout not counted
    min_answered: Annotated[float, Field(gt=0, le=1)] = 1.0  # share of a round's queries answered before it closes
    # When to stop; None and false: this rule does not stop the loop. `alloop status` shows what all of them say.
    label_budget: PositiveInt | None = None  # this many labels (holdout included) are there
    max_rounds: PositiveInt | None = None
    target_accuracy: Share | None = None  # the lower end of the accuracy's 95 % interval reaches it
    stop_when_flat: bool = False  # the learning curve promises less than flat_gain from the next doubling of labels
    flat_gain: Annotated[float, Field(gt=0, lt=1)] = 0.005
    stop_when_stable: bool = False  # predictions on the pool agree from round to round, stable_rounds times in a row
    stable_agreement: Annotated[float, Field(gt=0, le=1)] = 0.98
    stable_rounds: PositiveInt = 3


class AcquisitionConfig(Section):
    """`[acquisition]`: which images to ask about."""

    strategy: str = DEFAULT_STRATEGY  # alloop/composition.py lists them; installed packages can add theirs
    perturb: Literal["none", "power", "softmax", "soft-rank"] = "none"  # draws by a score instead of taking the highest
    beta: Annotated[float, Field(gt=0)] = 1.0  # of the perturbation: larger is closer to the highest scores
    explore: Share = 0.05  # perturbed strategies: share of the weight spread evenly, so that any image may be drawn
    class_quota: Annotated[float, Field(gt=0, le=1)] = 1.0  # of a batch at most, from one predicted class
    max_candidates: PositiveInt | None = None  # a uniform sample of the pool is looked at; None: all of it
    max_ram: Annotated[float, Field(gt=0)] = (
        8.0  # GiB that choosing a batch may take; a strategy that needs more is refused
    )
    only: str | None = (
        None  # which images may be asked: a glob of paths, or a condition such as site = 'A' and year > 2020
    )
    random_fraction: Share = 0.1  # of each batch, drawn uniformly; feeds honest evaluation
    # Without a model: typical images by pretrained features, or a uniform draw. auto: the latter where there are none.
    cold_start: Literal["auto", "random"] = "auto"
    # how unlike the classes an image looks (alloop/evaluation/ood.py), and the quantile of the pool's scores that it
    # must exceed to be marked as suspect: at 0.99 at most 1 % of the images are, and none of fewer than 100.
    # odin reads every image of the pool and runs the trunk forwards, and for each member backwards and forwards again:
    # with M members scoring takes at least 1 + 2 M times as long as computing features, cached or not
    ood_score: Literal[
        "msp",
        "entropy",
        "energy",
        "max-logit",
        "gen",
        "mutual-information",
        "odin",
        "gradnorm",
    ] = "msp"
    suspect_quantile: Annotated[float, Field(gt=0, lt=1)] = 0.99
    skip_suspects: bool = False  # suspects are not asked about, neither chosen nor drawn; the holdout is not affected
    ask_skipped_after: PositiveInt | None = None  # rounds until a skipped image may be asked again; None: never

    @model_validator(mode="after")
    def _check_name(self) -> "AcquisitionConfig":
        check_strategy_name(self.strategy)
        return self


class EvaluationConfig(Section):
    """`[evaluation]`: the random sample that is only measured on."""

    holdout_size: PositiveInt = 200
    holdout_share: Annotated[float, Field(gt=0, lt=1)] = 0.1  # of the pool; the smaller of the two counts
    holdout_growth: Annotated[float, Field(ge=0, lt=1)] = 0.0  # share of batch_size drawn into it in every later round
    # After each round models of equally many random and acquired labels are compared; frozen mode only
    matched_arm: bool = True
    # A labeled test set in place of a holdout: CSV (file,label) or a folder per class. Nothing is fitted to it; the
    # calibrator is cross-validated on the training labels.
    test: Path | None = Field(default=None, strict=False)


class LabelStudioConfig(Section):
    """`[labeling.label_studio]`: the server. The token comes from LABEL_STUDIO_API_KEY or from a file."""

    url: str = "http://localhost:8080"
    project_id: PositiveInt | None = None  # None: alloop creates one and remembers its id in the database
    api_key_file: Path | None = Field(default=None, strict=False)
    timeout: Annotated[float, Field(gt=0)] = 120.0  # seconds for one request
    push_batch: Annotated[int, Field(ge=1, le=1000)] = 500  # tasks per import call


class ImagesConfig(Section):
    """`[labeling.images]`: how annotators' browsers get the images."""

    via: Literal["local-files", "upload", "url"] = "local-files"
    root: Path | None = Field(default=None, strict=False)  # local-files, url: the folder here that the server sees
    server_root: str | None = None  # local-files: the same folder as the server names it (a container's mount)
    url_prefix: str | None = None  # url: what replaces `root`

    @model_validator(mode="after")
    def _check_url(self) -> "ImagesConfig":
        if self.via == "url" and (self.url_prefix is None or self.root is None):
            raise ValueError('via = "url" needs both url_prefix and root')
        return self


class OracleConfig(Section):
    """`[labeling.oracle]`: answers from a CSV (`file,label` or `sha256,label`), for simulation."""

    file: Path | None = Field(default=None, strict=False)
    noise: Share = 0.0  # chance of a uniformly drawn wrong class
    annotators: PositiveInt = 1
    # Columns of the CSV with the answers of real people, one each, in place of `label`. An image is answered by
    # [labeling] annotations_per_image of them, drawn by its content and the seed.
    columns: tuple[str, ...] = Field(default=(), strict=False)

    @model_validator(mode="after")
    def _check_columns(self) -> "OracleConfig":
        blank = [name for name in self.columns if not name or name != name.strip()]
        if blank:
            raise ValueError(f"columns must not be empty or padded with spaces: {blank[0]!r}")
        twice = sorted({name for name in self.columns if self.columns.count(name) > 1})
        if twice:
            raise ValueError(f"column {twice[0]!r} is named twice")
        if self.columns and (self.noise > 0 or self.annotators > 1):
            made_up = "noise" if self.noise > 0 else "annotators"
            raise ValueError(f"columns hold what real people answered; {made_up} is for simulated people only")
        return self


class CsvConfig(Section):
    """`[labeling.csv]`: batch sheets to fill in."""

    folder: Path = Field(default=Path("sheets"), strict=False)


class LabelingConfig(Section):
    """`[labeling]`: who answers."""

    backend: str = DEFAULT_BACKEND  # alloop/composition.py lists them; installed packages can add theirs
    preannotate: bool = False  # show the model's guess; invites agreement with it
    annotations_per_image: PositiveInt = 1
    poll_seconds: Annotated[float, Field(gt=0)] = 30.0  # `alloop run --wait`
    label_studio: LabelStudioConfig = LabelStudioConfig()
    images: ImagesConfig = ImagesConfig()
    oracle: OracleConfig = OracleConfig()
    csv: CsvConfig = CsvConfig()
    options: dict[
        str, Any
    ] = {}  # settings of another package's back end; they are stored with each round, so no secrets

    @model_validator(mode="after")
    def _check_backend(self) -> "LabelingConfig":
        check_backend(self.backend)
        return self

    @model_validator(mode="after")
    def _check_people(self) -> "LabelingConfig":
        people = self.oracle.columns
        if self.backend == "oracle" and people and len(people) < self.annotations_per_image:
            raise ValueError(
                f"annotations_per_image is {self.annotations_per_image}, but oracle.columns names {len(people)} people"
            )
        return self


class Config(Section):
    """All of alloop.toml."""

    project: ProjectConfig
    pool: PoolConfig = PoolConfig()
    database: DatabaseConfig = DatabaseConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    calibration: CalibrationConfig = CalibrationConfig()
    loop: LoopConfig = LoopConfig()
    acquisition: AcquisitionConfig = AcquisitionConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    labeling: LabelingConfig = LabelingConfig()

    @model_validator(mode="after")
    def _check_methods(self) -> "Config":
        model, train = self.model, self.train
        is_frozen = model.mode == "frozen"
        check_composition(
            loss=train.loss,
            parameters=train.loss_parameters,
            mixing=train.mixing,
            frozen=is_frozen,
            has_images=not model.backbone.startswith("features:"),
            batch_size=None if is_frozen else train.batch_size,
            n_members=model.n_networks * model.n_heads,
            dropout_passes=model.n_passes if model.uncertainty == "mc-dropout" else None,
            dropout_rate=model.dropout if model.uncertainty == "mc-dropout" else None,
            consistent_masks=model.consistent_masks,
            calibrator=self.calibration.method,
            ood_score=self.acquisition.ood_score,
        )
        check_strategy(self.acquisition.strategy, n_members=model.n_members, perturb=self.acquisition.perturb)
        return self
