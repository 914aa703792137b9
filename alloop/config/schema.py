"""Settings of alloop.toml, one frozen model per section: names, types, defaults and units."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, model_validator
from pydantic_core import PydanticCustomError

from alloop.composition import (
    CALIBRATORS,
    CLASSIFICATION,
    DEFAULT_BACKEND,
    DEFAULT_STRATEGY,
    LOSSES,
    MIXINGS,
    OOD_SCORES,
    PERTURBATIONS,
    check_backend,
    check_composition,
    check_strategy,
    check_strategy_name,
)
from alloop.names import hidden_signs, look

PositiveInt = Annotated[int, Field(ge=1, lt=2**63)]
Share = Annotated[float, Field(ge=0, le=1)]
Augmentation = Literal["crop-flip", "trivial"]  # engine/views.py
if TYPE_CHECKING:  # mypy reads no Literal that is made at run time
    LossName = str
    MixingName = str
    CalibratorName = str
    OodScoreName = str
    PerturbationName = str
else:
    LossName = Literal[tuple(LOSSES)]
    MixingName = Literal[tuple(MIXINGS)]
    CalibratorName = Literal[tuple(CALIBRATORS)]
    OodScoreName = Literal[tuple(OOD_SCORES)]
    PerturbationName = Literal[tuple(PERTURBATIONS)]


class Section(BaseModel):
    """Section of alloop.toml. Refuses unknown keys and values of another type, and cannot be changed after loading.

    Infinite numbers and nan are refused, because each round stores its settings as JSON.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=(), allow_inf_nan=False)


class ProjectConfig(Section):
    """`[project]`: name, classes and seed."""

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
        # Class names appear in folder names of exports, in CSV cells and in Label Studio's XML.
        odd = [n for n in self.classes if re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029/\\]", n) or n in {".", ".."}]
        if odd:
            raise ValueError(f"class names must not contain slashes or control characters, or be dots: {odd[0]!r}")
        _check_look(self.classes)
        return self


def _check_look(classes: tuple[str, ...]) -> None:
    """Refuse class names that look the same, because an answer would be ambiguous."""
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
    """`[pool]`: location of the images, and grouping of near copies."""

    images: tuple[str, ...] = Field(default=(), strict=False)  # folders or globs; `alloop pool add` adds them
    near_duplicate_distance: Annotated[int, Field(ge=0, le=16)] = 6  # bits of 64 (benchmarks/near_duplicates)
    near_duplicates: bool = True  # False: every image is its own group
    max_pixels: PositiveInt = 178_956_970  # larger images are refused as decompression bombs
    truncated: Literal["refuse", "accept"] = "refuse"  # incomplete files; accept: read as far as possible


GIVEN = "features:"  # prefix of a backbone whose features were computed elsewhere


class TrunkSettings(NamedTuple):
    """Settings of one trunk: name, weights, and side of its images in pixels (None: as the weights were trained)."""

    name: str
    weights: str
    image_size: int | None

    @property
    def is_learned(self) -> bool:
        """True if its features are useful without training. User factories are assumed to give useful features."""
        is_own = ":" in self.name and not self.name.startswith("timm:")
        return self.weights != "none" or is_own or self.name == "pixels"


def _one_or_several(is_valid: Callable[[Any], bool], words: str) -> PlainValidator:
    """Check a setting with one value, or with a value for each trunk. A list of one value is this value.

    Args:
        is_valid: Function that tells whether a value is right.
        words: Description of a right value.
    """

    def check(given: Any) -> Any:
        values = tuple(given) if isinstance(given, list | tuple) else (given,)
        if not values or not all(map(is_valid, values)):
            # "string_type" lets `config.load` take a variable's own text where a name looks like a number.
            raise PydanticCustomError("string_type", f"Input should be {words}, or a list of them")
        return values[0] if len(values) == 1 else values

    return PlainValidator(check)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_size(value: Any) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 8)


if TYPE_CHECKING:
    Names = str | tuple[str, ...]
    Sizes = int | None | tuple[int | None, ...]
else:  # Any, because pydantic would warn that a tuple is stored as a list
    Names = Annotated[Any, _one_or_several(_is_name, "a name")]
    Sizes = Annotated[Any, _one_or_several(_is_size, "a whole number of pixels, at least 8")]


class ModelConfig(Section):
    """`[model]`: the model that predicts."""

    # torchvision name | timm:NAME | package.module:factory | pixels | features:D, or a list of several trunks whose
    # features stand side by side; weights and image_size are then one value for all, or a list with a value for each
    backbone: Names = "resnet50"
    weights: Names = "DEFAULT"  # DEFAULT | none | name of published torchvision weights | a local .safetensors or .pth
    mode: Literal["frozen", "finetune"] = "frozen"
    uncertainty: Literal["multi-head", "ensemble", "mc-dropout", "single"] = "multi-head"
    members: PositiveInt | None = None  # None: 4 heads, 5 networks of an ensemble, 20 dropout passes; single: always 1
    heads: PositiveInt = 1  # heads of each network of an ensemble, or under dropout
    head_weights: Literal["multi", "same"] = "multi"  # multi: each head has class weights of its own
    dropout: Annotated[float, Field(ge=0, lt=1)] = (
        0.25  # mc-dropout: probability that a feature is dropped before the heads
    )
    consistent_masks: bool = False  # mc-dropout: one mask per pass for the whole pool
    image_size: Sizes = None  # pixels; None: the size that the weights were trained with
    pool_features: Literal["auto", "off"] = "auto"  # auto: the unlabeled pool teaches features where this can help
    device: str = "auto"  # auto | cpu | cuda | cuda:N | mps
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # of features; auto: bfloat16 on cards that have it
    # what runs a published trunk on the CPU; auto: ONNX Runtime if the extra onnx is installed, else PyTorch
    engine: Literal["auto", "torch", "onnxruntime"] = "auto"

    @model_validator(mode="after")
    def _check_trunks(self) -> "ModelConfig":
        n_trunks = len(_listed(self.backbone))
        for key in ("weights", "image_size"):
            value = getattr(self, key)
            if isinstance(value, tuple) and len(value) != n_trunks:
                raise ValueError(
                    f"{key} has {len(value)} values, but backbone names {n_trunks} trunk{'s' * (n_trunks != 1)}; "
                    "give one value for all, or one for each"
                )
        for trunk in self.trunks:
            if self.trunks.count(trunk) > 1:
                raise ValueError(f"backbone names {trunk.name!r} twice, with the same weights and image_size")
            if trunk.name.startswith(GIVEN):
                self._check_given(trunk.name)
        if n_trunks > 1 and self.mode == "finetune":
            raise ValueError(
                f'mode = "finetune" trains one trunk, but backbone names {n_trunks}; name one, or set mode = "frozen"'
            )
        return self

    def _check_given(self, name: str) -> None:
        if len(self.trunks) > 1:
            raise ValueError(
                f"{name!r} stands for given features, which cannot stand beside those of a trunk; put them side by "
                "side before they are given, or name trunks only"
            )
        if not re.fullmatch(rf"{GIVEN}[1-9][0-9]*", name):
            raise ValueError(f"backbone {name!r} must name how many features are given, as in features:1280")
        if self.mode == "finetune":
            raise ValueError('given features have no trunk that could be fine-tuned; set mode = "frozen"')

    @property
    def trunks(self) -> tuple[TrunkSettings, ...]:
        """Settings of every trunk, in the order of their features."""
        names = _listed(self.backbone)
        return tuple(map(TrunkSettings, names, _listed(self.weights, len(names)), _listed(self.image_size, len(names))))

    @property
    def has_learned_features(self) -> bool:
        """True if the features of every trunk are useful before training."""
        return all(trunk.is_learned for trunk in self.trunks)

    @property
    def has_images(self) -> bool:
        """True if a trunk looks at images; False if features are given."""
        return not self.trunks[0].name.startswith(GIVEN)

    @property
    def n_networks(self) -> int:
        """Number of networks that are trained."""
        return (self.members or 5) if self.uncertainty == "ensemble" else 1

    @property
    def n_heads(self) -> int:
        """Number of heads of each network."""
        if self.uncertainty == "multi-head":
            return self.members or 4
        return 1 if self.uncertainty == "single" else self.heads

    @property
    def n_passes(self) -> int:
        """Number of dropout passes; 1 without MC dropout."""
        return (self.members or 20) if self.uncertainty == "mc-dropout" else 1

    @property
    def n_members(self) -> int:
        """Number of members M, whose mean is the prediction."""
        return self.n_networks * self.n_heads * self.n_passes


def _listed(value: Any, n: int = 1) -> tuple[Any, ...]:
    """Return the value of each of n trunks."""
    return value if isinstance(value, tuple) else (value,) * n


class TrainConfig(Section):
    """`[train]`: training. None means the tuned default of the mode (benchmarks/recipe)."""

    epochs: PositiveInt | None = None  # largest number of passes over the labels (finetune) or of solver steps (frozen)
    batch_size: PositiveInt | None = None  # images in memory at once; in finetune mode also images per update
    learning_rate: Annotated[float, Field(gt=0)] | None = (
        None  # finetune mode only: rate of the heads; the trunk's is a tenth of it
    )
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    loss_scale: Literal["mean", "sum"] = "mean"  # mean: the multi-head loss is divided by M + 1
    validation_share: Annotated[float, Field(gt=0, lt=0.5)] = 0.15  # finetune mode only: share of the training labels
    # finetune mode only: epochs without a better validation NLL before training stops; None: 10, or with few labels so
    # many that there are 640 updates
    patience: PositiveInt | None = None
    # finetune mode only. on: images of the pool without a label teach, too, in two to four times the time; no gain was
    # measured with a few hundred labels (benchmarks/recipe)
    unlabeled: Literal["on", "off"] = "off"
    # Number of processes that decode images. auto: the cores that alloop may use, or fewer if memory is short.
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    loss: LossName = "cross-entropy"
    loss_parameters: dict[str, float] = {}  # by name; the defaults are in alloop/composition.py
    class_weights: Literal["none", "balanced"] = "none"  # balanced: N / (K n_k), whose mean over the labels is 1
    augment: Augmentation = "crop-flip"  # finetune mode only: random views; trivial: also one change of TrivialAugment
    mixing: MixingName = "none"  # in frozen mode only mixup, of features
    mixing_alpha: Annotated[float, Field(gt=0)] | None = None  # a of λ ~ Beta(a, a); None: 0.2 (mixup), 1.0 (cutmix)
    mixing_probability: Share | None = None  # probability that a batch is mixed; None: 1.0, for cutmix 0.5
    # Also train on automatic labels (`alloop autolabel`). Such a model cannot label automatically itself.
    use_auto_labels: bool = False

    def learns_unlabeled(self, model: ModelConfig) -> bool:
        """Return whether fine-tuning also learns from images without a label."""
        return model.mode == "finetune" and self.unlabeled == "on"


class CalibrationConfig(Section):
    """`[calibration]`: calibrator that is fitted to the labeled holdout."""

    # auto: lowest cross-validated NLL among those with enough images; isotonic needs 200 images, the others 50
    method: CalibratorName = "temperature"


class LoopConfig(Section):
    """`[loop]`: the size of a round and when to stop."""

    batch_size: PositiveInt = 50  # questions per round, without the holdout
    min_answered: Annotated[float, Field(gt=0, le=1)] = 1.0  # share of a round's queries answered before it closes
    # Stop rules; None and false switch a rule off. `alloop status` shows the state of all rules.
    label_budget: PositiveInt | None = None  # stop at this number of labels, holdout included
    max_rounds: PositiveInt | None = None
    target_accuracy: Share | None = None  # stop when the lower end of the accuracy's 95 % interval reaches it
    stop_when_flat: bool = False  # stop when the curve promises less than flat_gain from doubling the labels
    flat_gain: Annotated[float, Field(gt=0, lt=1)] = 0.005
    stop_when_stable: bool = False  # stop when predictions for the pool agree stable_rounds times in a row
    stable_agreement: Annotated[float, Field(gt=0, le=1)] = 0.98
    stable_rounds: PositiveInt = 3


class AcquisitionConfig(Section):
    """`[acquisition]`: choice of the images to ask about."""

    strategy: str = DEFAULT_STRATEGY  # alloop/composition.py lists them; installed packages can add theirs
    perturb: PerturbationName = "none"  # draws by a score instead of taking the highest
    beta: Annotated[float, Field(gt=0)] = 1.0  # perturbation: larger values favor the highest scores
    explore: Share = 0.05  # perturbation: share of the weight spread evenly, so that any image can be drawn
    class_quota: Annotated[float, Field(gt=0, le=1)] = 1.0  # largest share of a batch from one predicted class
    max_candidates: PositiveInt | None = None  # size of a uniform sample of the pool to choose from; None: all
    max_ram: Annotated[float, Field(gt=0)] = (
        8.0  # memory limit of choosing a batch, in GiB; a strategy that needs more is refused
    )
    only: str | None = (
        None  # images that may be asked about: a glob of paths, or a condition such as site = 'A' and year > 2020
    )
    random_fraction: Share = 0.1  # share of each batch that is drawn uniformly; honest evaluation needs it
    # Without a model. auto: typical images by pretrained features, or a uniform draw without such features.
    cold_start: Literal["auto", "random"] = "auto"
    # Score of images unlike the classes (docs/methods.md section 9). Images whose score exceeds this quantile of the
    # pool are marked as suspect: at 0.99 at most 1 % of the images, and no image of fewer than 100. odin reads every
    # image of the pool and runs the trunk forwards, and for each member backwards and forwards again: with M members,
    # scoring takes at least 1 + 2 M times as long as computing the features.
    ood_score: OodScoreName = "msp"
    suspect_quantile: Annotated[float, Field(gt=0, lt=1)] = 0.99
    skip_suspects: bool = False  # neither choose nor draw suspects; the holdout is not affected
    ask_skipped_after: PositiveInt | None = None  # rounds until a skipped image may be asked about again; None: never

    @model_validator(mode="after")
    def _check_name(self) -> "AcquisitionConfig":
        check_strategy_name(self.strategy)
        return self


class EvaluationConfig(Section):
    """`[evaluation]`: the holdout, a random sample that is only measured on."""

    holdout_size: PositiveInt = 200
    holdout_share: Annotated[float, Field(gt=0, lt=1)] = 0.1  # share of the pool; the smaller of the two sizes is used
    holdout_growth: Annotated[float, Field(ge=0, lt=1)] = 0.0  # share of batch_size added in later rounds
    # Compare models of equally many random and acquired labels after each round; frozen mode only
    matched_arm: bool = True
    # Labeled test set instead of a holdout: a CSV (file,label) or a folder per class. Nothing is fitted to it; the
    # calibrator is cross-validated on the training labels.
    test: Path | None = Field(default=None, strict=False)


class LabelStudioConfig(Section):
    """`[labeling.label_studio]`: the server. Its token is read from LABEL_STUDIO_API_KEY or from a file."""

    url: str = "http://localhost:8080"
    project_id: PositiveInt | None = None  # None: alloop creates a project and stores its id in the database
    api_key_file: Path | None = Field(default=None, strict=False)
    timeout: Annotated[float, Field(gt=0)] = 120.0  # seconds for one request
    push_batch: Annotated[int, Field(ge=1, le=1000)] = 500  # tasks per import call


class ImagesConfig(Section):
    """`[labeling.images]`: the way in which annotators' browsers get the images."""

    via: Literal["local-files", "upload", "url"] = "local-files"
    root: Path | None = Field(default=None, strict=False)  # local-files, url: local path of the served folder
    server_root: str | None = None  # local-files: path of the same folder on the server (in a container)
    url_prefix: str | None = None  # url: replaces `root` in each path

    @model_validator(mode="after")
    def _check_url(self) -> "ImagesConfig":
        if self.via == "url" and (self.url_prefix is None or self.root is None):
            raise ValueError('via = "url" needs both url_prefix and root')
        return self


class OracleConfig(Section):
    """`[labeling.oracle]`: answers from a CSV (`file,label` or `sha256,label`), for simulations."""

    file: Path | None = Field(default=None, strict=False)
    noise: Share = 0.0  # probability of an answer with a uniformly drawn wrong class
    annotators: PositiveInt = 1
    # Columns of the CSV that hold the answers of real people, one column per person, instead of `label`. Each image is
    # answered by [labeling] annotations_per_image of them, drawn by its content and the seed.
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
    """`[labeling.csv]`: folder of the sheets that people fill in."""

    folder: Path = Field(default=Path("sheets"), strict=False)


class LabelingConfig(Section):
    """`[labeling]`: the people or programs that answer."""

    backend: str = DEFAULT_BACKEND  # alloop/composition.py lists them; installed packages can add theirs
    preannotate: bool = False  # show the model's guess; people tend to agree with it
    annotations_per_image: PositiveInt = 1
    poll_seconds: Annotated[float, Field(gt=0)] = 30.0  # interval of `alloop run --wait`
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
                f"annotations_per_image is {self.annotations_per_image}, but [labeling.oracle] columns names "
                f"{len(people)} people"
            )
        return self


class Config(Section):
    """All settings of alloop.toml."""

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
            has_images=model.has_images,
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
