"""A model of an exported folder: the numbers of the workspace's model, and folders that are refused."""

import hashlib
import io
import json
import pickle
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from alloop.engine.classifier import Classifier
from alloop.engine.export import run_export
from alloop.engine.exported_classifier import ExportedClassifier
from alloop.engine.jobs import ExportJob
from alloop.engine.settings import EngineSettings
from alloop.engine.train import run_train
from alloop.errors import ModelError

pytestmark = pytest.mark.usefixtures("onnx_operators")

MODELS = {
    "smoothed": {},
    "ensemble": {"uncertainty": "ensemble", "members": 2, "heads": 2},
    "side by side": {"backbone": ("pixels", "toy_trunk:tiny"), "weights": "none"},
}


@pytest.fixture(autouse=True, scope="module")
def _without_onnx():
    with pytest.MonkeyPatch.context() as patch:  # tracing takes most of the time, and once is enough
        patch.setattr("alloop.engine.device.ONNX_PACKAGES", ("no_such_package",))
        yield


def exported(toys, config):
    """Export a trained model; return the folder and the classifier of the workspace."""
    files = run_train(toys.train_job(config, pool=toys.images[:70])).files
    settings, cache, out = EngineSettings.of(config), toys.root / "cache", toys.root / "exported"
    run_export(ExportJob(settings, files, toys.images[75:], cache, out, "# A model"))
    return out, Classifier.open(files, settings, cache, fills_cache=False)


@pytest.fixture(scope="module")
def made_once(shared_toys):
    return exported(shared_toys, shared_toys.config(pool_features="off"))[0]


@pytest.fixture
def folder(made_once, tmp_path):
    """Return an exported folder that the test may damage."""
    return shutil.copytree(made_once, tmp_path / "exported")


@pytest.mark.parametrize("name", MODELS)
def test_images_get_the_numbers_that_they_get_in_the_workspace(toys, name):
    out, model = exported(toys, toys.config(**MODELS[name]))
    images = [image.path for image in toys.images[75:]]

    expected = list(model.predict(images))
    found = list(ExportedClassifier.open(out).predict(iter(images)))

    log_probs = torch.cat([part.log_probs for part in found])
    gap = (log_probs.exp() - torch.cat([part.log_probs for part in expected]).exp()).abs().max()
    assert float(gap) < 1e-4
    assert found[0].classes == expected[0].classes
    assert found[0].guesses.tolist() == expected[0].guesses.tolist()
    torch.testing.assert_close(found[0].entropy, expected[0].entropy, rtol=0, atol=1e-4)
    assert (found[0].mutual_information, found[0].ood, found[0].features) == (None, None, None)


def test_pictures_of_every_kind_are_predicted_and_bad_ones_have_a_reason(toys, folder, tmp_path):
    model = ExportedClassifier.open(folder, max_pixels=10_000)
    path = toys.images[80].path
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    data = Path(path).read_bytes()
    images = [path, data, picture, tmp_path / "gone.png", b"nothing", Image.new("RGB", (200, 100))]

    (part,) = model.predict(images)

    assert [image.image_id for image in part.images] == [0, 1, 2]
    assert torch.equal(part.log_probs[0], part.log_probs[1])
    torch.testing.assert_close(part.log_probs[0], part.log_probs[2])
    assert [number for number, _ in part.failed] == [3, 4, 5]
    assert all(reason for _, reason in part.failed)
    (nothing,) = model.predict([b"nothing"])
    assert nothing.log_probs.shape == (0, 3)
    assert nothing.entropy.shape == (0,)
    with pytest.raises(TypeError, match="several images"):
        model.predict(path)


def test_more_images_than_a_batch_are_numbered_through(toys, folder):
    model = ExportedClassifier.open(folder)
    images = [*(image.path for image in toys.images[:40]), b"nothing"]

    parts = list(model.predict(images))

    assert [image.image_id for part in parts for image in part.images] == list(range(40))
    assert [number for part in parts for number, _ in part.failed] == [40]


@pytest.mark.parametrize("name", ["preprocess.json", "classes.txt", "model.pt2"])
def test_a_file_that_is_missing_or_changed_is_named(folder, name):
    file = folder / name
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match=f"{name} is damaged"):
        ExportedClassifier.open(folder)
    file.unlink()
    with pytest.raises(ModelError, match=f"has no {name} that can be read") as error:
        ExportedClassifier.open(folder)
    assert "alloop" in error.value.hint


def test_rules_that_alloop_does_not_know_are_refused(folder):
    path = folder / "preprocess.json"
    rules = json.loads(path.read_text())
    rules["inputs"][0]["interpolation"] = "magic"
    path.write_text(json.dumps(rules))
    with pytest.raises(ModelError, match=r"of another alloop: inputs\.0\.interpolation: "):
        ExportedClassifier.open(folder)


class Evil:
    """An object that leaves a trace when it is unpickled."""

    def __reduce__(self):
        return (print, ("unpickled",))


def _pickled_weight(name: str, data: bytes) -> bytes:
    if name.endswith("model_weights_config.json"):
        config = json.loads(data)
        next(iter(config["config"].values()))["use_pickle"] = True
        return json.dumps(config).encode()
    return data


def _pickled_example(name: str, data: bytes) -> bytes:
    if "/sample_inputs/" not in name:
        return data
    file = io.BytesIO()
    torch.save(Evil(), file)
    return file.getvalue()


@pytest.mark.parametrize("change", [_pickled_weight, _pickled_example, None])
def test_nothing_is_unpickled(folder, change, capsys):
    path, rules = folder / "model.pt2", json.loads((folder / "preprocess.json").read_text())
    shutil.move(path, folder / "before.pt2")
    with zipfile.ZipFile(folder / "before.pt2") as before, zipfile.ZipFile(path, "w") as after:
        for name in before.namelist():
            after.writestr(name, change(name, before.read(name)) if change else before.read(name))
        if change is None:
            after.writestr(
                before.namelist()[0].partition("/")[0] + "/data/constants/opaque_obj_0", pickle.dumps(Evil())
            )
    rules["sha256"]["model.pt2"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "preprocess.json").write_text(json.dumps(rules))

    with pytest.raises(ModelError, match=r"holds pickled objects|cannot be loaded"):
        ExportedClassifier.open(folder)

    assert "unpickled" not in capsys.readouterr().out
