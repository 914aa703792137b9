"""Trunks by name: what a name may be, what its weights may be, and how images are prepared."""

import socket
import sys
import types
import typing
import urllib.error
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision
from factories import Whole
from PIL import Image
from torch import nn
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import center_crop, pil_to_tensor, resize, to_pil_image

from alloop.errors import ConfigError, ModelError
from alloop.models import backbones
from alloop.models.backbones import Backbone, load_backbone

SAMPLE = [
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "inception_v3",
    "maxvit_t",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "resnet18",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "swin_t",
    "vgg11",
    "vit_b_16",
]


@pytest.fixture(scope="module")
def tiny() -> Backbone:
    return load_backbone("shufflenet_v2_x0_5", "none")


@pytest.mark.filterwarnings("ignore:The default weight initialization of")  # torchvision, on Inception and GoogLeNet
@pytest.mark.parametrize("name", SAMPLE)
def test_the_classifier_is_cut_off_and_its_inputs_are_the_features(name):
    with torch.device("meta"):  # shapes without numbers
        module = torchvision.models.get_model(name, weights=None)
        _, n_features = backbones._cut_classifier(module)
        size = torchvision.models.get_model_weights(name).DEFAULT.transforms().crop_size[0]

        features = module.eval()(torch.zeros(2, 3, size, size))

    assert features.shape == (2, n_features)


@pytest.mark.parametrize(
    ("name", "size", "resize", "interpolation"),
    [("resnet18", 224, 256, "bilinear"), ("resnet50", 224, 232, "bilinear"), ("swin_t", 224, 232, "bicubic")],
)
def test_images_are_prepared_as_the_default_weights_were_trained(name, size, resize, interpolation):
    backbone = load_backbone(name, "none")

    assert (backbone.image_size, backbone.resize, backbone.interpolation) == (size, resize, interpolation)
    assert backbone.mean == (0.485, 0.456, 0.406)
    assert backbone.std == (0.229, 0.224, 0.225)


def test_preparing_and_normalizing_agree_with_torchvisions_own_preset():
    image = torch.randint(0, 256, (3, 300, 400), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    backbone = load_backbone("resnet18", "none")
    preset = torchvision.models.ResNet18_Weights.DEFAULT.transforms()

    prepared = backbone.normalize(backbone.preprocess(Whole(image)).unsqueeze(0))

    torch.testing.assert_close(prepared[0], preset(to_pil_image(image)), atol=1e-5, rtol=0)


def test_another_image_size_keeps_the_share_that_is_cut_off():
    backbone = load_backbone("resnet18", "none", image_size=112)

    assert (backbone.image_size, backbone.resize) == (112, 128)
    assert backbone.preprocess(Whole(torch.zeros(3, 50, 200, dtype=torch.uint8))).shape == (3, 112, 112)


def resized_then_cut(backbone: Backbone, image: torch.Tensor) -> torch.Tensor:
    size = backbone.image_size
    mode = v2.InterpolationMode(backbone.interpolation)
    resized = resize(to_pil_image(image), [backbone.resize or size], mode, antialias=True)
    return pil_to_tensor(center_crop(resized, [size, size]))


def noise(height: int, width: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(height * width)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=draw)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(30, 40), (400, 300), (1, 1), (7, 100), (100, 7), (1000, 90), (16, 20)])
def test_an_ordinary_image_is_resized_whole_and_then_cut(interpolation, shape):
    backbone = Backbone(nn.Identity(), 1, image_size=28, resize=32, interpolation=interpolation)

    assert torch.equal(backbone.preprocess(Whole(noise(*shape))), resized_then_cut(backbone, noise(*shape)))


@pytest.mark.parametrize("shape", [(1, 30_000), (30_000, 1), (2, 29_999), (30_000, 3)])
def test_a_strip_is_cut_before_it_is_enlarged(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int]):
    backbone, sizes = Backbone(nn.Identity(), 1, image_size=224, resize=256), []
    real = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda *a, **k: sizes.append((r := real(*a, **k)).size) or r)

    assert backbone.preprocess(Whole(noise(*shape))).shape == (3, 224, 224)

    assert max(sizes[0]) <= 4 * 224  # and not 7,680,000


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("upright", [False, True])
def test_a_strip_shows_its_middle_as_if_all_of_it_had_been_resized(interpolation, upright):
    backbone = Backbone(nn.Identity(), 1, image_size=28, resize=32, interpolation=interpolation)
    waves = (torch.sin(torch.arange(3000) / 40) * 100 + 128).to(torch.uint8).expand(3, 10, 3000)
    strip = waves.mT.contiguous() if upright else waves.contiguous()

    difference = backbone.preprocess(Whole(strip)).int() - resized_then_cut(backbone, strip).int()

    assert difference.abs().max() <= 4  # of 256 levels: the two grids may be a part of a pixel apart


def test_a_vision_transformer_refuses_another_image_size():
    with pytest.raises(ConfigError, match="vit_b_16 takes images of 224 pixels only"):
        load_backbone("vit_b_16", "none", image_size=112)


def test_trunks_come_in_eval_mode_without_gradients(tiny):
    assert not any(module.training for module in tiny.module.modules())
    assert not any(parameter.requires_grad for parameter in tiny.module.parameters())


def test_random_weights_come_from_the_seed_and_leave_the_global_stream_alone():
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)

    first, same, other = (load_backbone("squeezenet1_1", "none", seed=seed) for seed in (1, 1, 2))

    assert torch.equal(torch.rand(1), expected)
    assert first.fingerprint() == same.fingerprint() != other.fingerprint()


def test_a_fingerprint_changes_with_weights_and_with_preprocessing(tiny):
    before = tiny.fingerprint()

    smaller = tiny.resized_to(64).fingerprint()

    assert smaller["weights"] == before["weights"]
    assert smaller != before


@pytest.mark.parametrize(("name", "meant"), [("resnet_50", "resnet50"), ("pixles", "pixels")])
def test_an_unknown_name_is_answered_with_the_nearest(name: str, meant: str):
    with pytest.raises(ConfigError, match=f"no backbone '{name}'") as caught:
        load_backbone(name)

    assert meant in caught.value.hint


def test_weights_that_cannot_be_downloaded_are_explained(monkeypatch, tmp_path):
    timeouts = []

    def refuse(*_: object, **__: object) -> None:
        timeouts.append(socket.getdefaulttimeout())
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    with pytest.raises(ModelError, match="no route to host") as caught:
        load_backbone("resnet18")

    assert "resnet18-f37072fd.pth" in caught.value.hint
    assert str(tmp_path / "hub" / "checkpoints") in caught.value.hint
    assert timeouts == [backbones.DOWNLOAD_TIMEOUT]
    assert socket.getdefaulttimeout() is None


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_come_from_a_local_file_with_or_without_the_classifier(tmp_path, tiny, suffix):
    path = tmp_path / f"weights{suffix}"
    state = {name: tensor.clone() for name, tensor in tiny.module.state_dict().items()}
    with_classifier = state | {"fc.weight": torch.zeros(7, 1024), "fc.bias": torch.zeros(7)}
    if suffix == ".pth":
        torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in with_classifier.items()}}, path)
    else:
        safetensors.torch.save_file(state, path)

    loaded = load_backbone("shufflenet_v2_x0_5", str(path), seed=99)

    assert loaded.fingerprint() == tiny.fingerprint()


def test_weights_of_another_network_are_refused_naming_them(tmp_path, tiny):
    path = tmp_path / "other.safetensors"
    state = {name: tensor.clone() for name, tensor in tiny.module.state_dict().items()}
    state["conv1.0.weight"] = torch.zeros(8, 3, 3, 3)
    state["surprise.weight"] = torch.zeros(1)
    del state["conv5.0.weight"]
    safetensors.torch.save_file(state, path)

    with pytest.raises(ModelError) as caught:
        load_backbone("shufflenet_v2_x0_5", str(path))

    assert "missing: conv5.0.weight" in caught.value.message
    assert "unknown: surprise.weight" in caught.value.message
    assert "conv1.0.weight is [8, 3, 3, 3], not [24, 3, 3, 3]" in caught.value.message


class Evil:
    def __reduce__(self):
        return (sys.exit, ("unpickled",))


@pytest.mark.parametrize("content", ["pickle", "garbage", "list", "missing"])
def test_a_file_that_is_no_state_dict_is_refused_and_never_unpickled(tmp_path, content):
    path = tmp_path / "weights.pth"
    if content == "pickle":
        torch.save(Evil(), path)
    elif content == "garbage":
        path.write_bytes(b"\x00garbage" * 10)
    elif content == "list":
        torch.save([1, 2], path)

    with pytest.raises(ModelError, match=str(path.name)):
        load_backbone("shufflenet_v2_x0_5", str(path))


def test_a_damaged_safetensors_file_is_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"\xff" * 100)

    with pytest.raises(ModelError, match="could not be read as weights"):
        load_backbone("shufflenet_v2_x0_5", str(path))


FACTORIES = """
from torch import nn
from alloop.models.backbones import Backbone

def plain():
    return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())

def full():
    return Backbone(plain(), n_features=12, image_size=32, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic")

def maps():
    return nn.AdaptiveAvgPool2d(2)

def nothing():
    return None

def broken():
    raise ValueError("forgot something")
"""


@pytest.fixture
def workspace(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Path, str]]:
    name = "trunk_" + str(abs(hash(request.node.name)))
    (tmp_path / f"{name}.py").write_text(FACTORIES)
    yield tmp_path, name
    sys.modules.pop(name, None)


def test_a_factory_in_the_workspace_may_return_a_plain_module(workspace):
    folder, name = workspace

    backbone = load_backbone(f"{name}:plain", search_paths=[folder])

    assert (backbone.n_features, backbone.image_size) == (12, 224)
    assert str(folder) not in sys.path


def test_a_factory_may_say_how_its_images_must_look(workspace):
    folder, name = workspace

    backbone = load_backbone(f"{name}:full", search_paths=[folder])

    assert (backbone.image_size, backbone.interpolation) == (32, "bicubic")
    assert backbone.preprocess(Whole(torch.zeros(3, 64, 48, dtype=torch.uint8))).shape == (3, 32, 32)


@pytest.mark.parametrize(
    ("factory", "error", "message"),
    [
        ("plan", ConfigError, "has no 'plan'"),
        ("maps", ModelError, r"gives \[1, 3, 2, 2\]"),
        ("nothing", ModelError, "returned NoneType"),
        ("broken", ModelError, "ValueError: forgot something"),
    ],
)
def test_a_factory_that_does_not_keep_the_contract_is_explained(workspace, factory, error, message):
    folder, name = workspace

    with pytest.raises(error, match=message):
        load_backbone(f"{name}:{factory}", search_paths=[folder])


def test_a_module_that_is_not_there_is_said_to_be_missing(tmp_path):
    with pytest.raises(ConfigError, match="no module 'nowhere_to_be_found'") as caught:
        load_backbone("nowhere_to_be_found:trunk", search_paths=[tmp_path])

    assert str(tmp_path) in caught.value.hint


def test_timm_without_the_extra_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)

    with pytest.raises(ModelError, match="needs timm") as caught:
        load_backbone("timm:resnet10t")

    assert "alloop[timm]" in caught.value.hint


def test_pixels_need_no_weights_and_are_always_the_same():
    first, second = load_backbone("pixels", seed=1), load_backbone("pixels", seed=2)
    image = torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    features = first.module(first.normalize(first.preprocess(Whole(image)).unsqueeze(0)))

    assert features.shape == (1, first.n_features)
    assert first.fingerprint() == second.fingerprint()
    assert isinstance(first.module, nn.Module)


def test_pixels_see_shapes_and_not_plain_brightness():
    backbone = load_backbone("pixels")
    inner = torch.zeros(1, 3, 8, 8)
    inner[..., 2:6, 2:6] = 0.5

    dark, bright = (backbone.module(inner + offset) for offset in (0.1, 0.3))

    # The cells at the border see the zeros around the image.
    dark, bright = (features.reshape(64, 4, 4)[:, 1:3, 1:3] for features in (dark, bright))
    torch.testing.assert_close(dark, bright, atol=1e-4, rtol=0)
    assert dark.abs().max() > 0


@pytest.mark.parametrize(
    ("name", "size"), [("squeezenet1_1", 9), ("own:patches", 20), ("own:wrong_shape", 32), ("own:empty", 16)]
)
def test_a_size_that_the_trunk_cannot_take_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, size: int):
    modules = {
        "own:patches": nn.Sequential(nn.Unflatten(3, (-1, 16)), nn.Flatten()),
        "own:wrong_shape": nn.Flatten(),
        "own:empty": nn.Sequential(nn.Conv2d(3, 2, 16, 16), nn.Flatten(2)),
    }
    if name in modules:
        made = Backbone(modules[name], 2, image_size=224)
        monkeypatch.setattr(backbones, "_from_factory", lambda *_: made)

    with pytest.raises(ConfigError, match=f"{name} cannot take images of {size} pixels") as caught:
        load_backbone(name, "none", image_size=size)

    assert "image_size" in caught.value.hint
    assert len(str(caught.value).splitlines()) == 2


def test_the_fingerprint_of_one_trunk_changes_only_with_the_rule_of_the_pixels():
    """Caches of earlier versions are found by it."""
    assert load_backbone("pixels").fingerprint() == {
        "trunk": "alloop.models.pixels.Pixels",
        "weights": "cdd7fa70c29a0beec164cc4fc1b1f4e1e57987bf94d76483f6b7ab2f239b6294",
        "n_features": 1024,
        "image_size": 8,
        "resize": 0,
        "mean": [0.0, 0.0, 0.0],
        "std": [1.0, 1.0, 1.0],
        "interpolation": "bilinear",
        "pixels": 2,
    }


def test_weights_that_torchvision_publishes_are_named(monkeypatch: pytest.MonkeyPatch):
    loaded = []
    monkeypatch.setattr(
        backbones, "_download", lambda name, weights: loaded.append(weights) or torchvision.models.get_model(name)
    )

    first, second = (load_backbone("resnet50", f"IMAGENET1K_V{version}") for version in (1, 2))

    assert [weights.name for weights in loaded] == ["IMAGENET1K_V1", "IMAGENET1K_V2"]
    assert (first.resize, second.resize) == (256, 232)  # each with its own preprocessing


def test_unknown_weights_are_refused_with_those_that_exist(tmp_path: Path):
    with pytest.raises(ConfigError, match="no weights 'IMAGENET1K_V3' of resnet50") as caught:
        load_backbone("resnet50", str(tmp_path / "IMAGENET1K_V3"))

    assert "IMAGENET1K_V2" in caught.value.hint


def test_a_name_of_weights_belongs_to_its_trunk():
    assert backbones.is_weights_name("resnet50", "IMAGENET1K_V2")
    assert not backbones.is_weights_name("resnet18", "IMAGENET1K_V2")
    assert not backbones.is_weights_name("timm:resnet50", "IMAGENET1K_V1")
    assert backbones.is_weights_name("own.module:make", "none")


class _Transformer(nn.Module):
    """Stands for timm's vision transformer, which is built for one image size."""

    num_features = 3
    default_cfg: typing.ClassVar[dict[str, str]] = {}

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert images.shape[-1] == self.size
        return images.mean(dim=(2, 3))


@pytest.mark.parametrize(("is_fixed", "size", "asked"), [(True, 224, {"img_size": 224}), (False, 518, {})])
def test_a_transformer_of_timm_is_built_for_the_image_size_that_is_set(monkeypatch, is_fixed, size, asked):
    made = []

    def create(name, *, pretrained, num_classes, img_size=518):
        made.append((name, pretrained, {} if img_size == 518 else {"img_size": img_size}))
        return _Transformer(img_size)

    data = {
        "input_size": (3, 518, 518),
        "crop_pct": 1.0,
        "mean": (0.5,) * 3,
        "std": (0.5,) * 3,
        "interpolation": "bicubic",
    }
    timm = types.SimpleNamespace(
        is_model=lambda name: True,
        get_pretrained_cfg=lambda name: types.SimpleNamespace(fixed_input_size=is_fixed),
        create_model=create,
        data=types.SimpleNamespace(resolve_model_data_config=lambda module: data),
    )
    monkeypatch.setitem(sys.modules, "timm", timm)

    backbone = load_backbone("timm:some_vit", "DEFAULT", 224 if is_fixed else None)

    assert made == [("some_vit", True, asked)]
    assert (backbone.image_size, backbone.resize, backbone.n_features) == (size, size, 3)
