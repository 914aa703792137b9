"""`alloop pool add --features`: the features of the separate way from one reading of each file."""

import builtins
import io
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import alloop
from factories import at_bench, make_project, tools_of, write_picture
from PIL import Image

from alloop.engine import trunk_passes
from alloop.engine.first_reading import FirstReading
from alloop.engine.jobs import FeatureJob
from alloop.engine.settings import EngineSettings
from alloop.errors import ModelError
from alloop.loop.intake.ingest import Added, add_images
from alloop.project import Project
from alloop.records import ImageRef
from alloop.store.images import list_refs
from alloop.store.rounds import find_last_round
from alloop.store.session import reading

# A network with weights drawn from the seed; its features depend on every pixel.
TRUNK = """
from torch import nn
from alloop.models.backbones import Backbone

def make():
    layers = nn.Conv2d(3, 5, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
    return Backbone(nn.Sequential(*layers), n_features=20, image_size=24, resize=32)
"""
MODEL = {"backbone": "small_trunk:make", "image_size": None, "engine": "torch"}
TRAIN = {"workers": 0, "batch_size": 8}


def write_photos(folder: Path) -> None:
    """Write 20 PNG files, a photo that its decoder reduces, a copy of a file, a deep image, and two bad files."""
    for number in range(20):
        write_picture(folder / f"{number:02d}.png", label="cat", number=number)
    coarse = np.random.default_rng(5).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((1600, 1200)).save(folder / "photo.jpg")
    shutil.copy(folder / "03.png", folder / "zz copy.png")
    deep = np.random.default_rng(6).integers(0, 4096, (20, 30), dtype=np.uint16)
    Image.fromarray(deep).save(folder / "deep.png")
    (folder / "broken.png").write_bytes((folder / "00.png").read_bytes()[:-30])
    (folder / "empty.jpg").write_bytes(b"")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return with_photos(tmp_path, "one")


def with_photos(folder: Path, name: str, **changes: Any) -> Project:
    found = make_project(folder, n=0, add=False, name=name, **{"model": MODEL, "train": TRAIN, **changes})
    (found.folder / "small_trunk.py").write_text(TRUNK)
    write_photos(found.folder / "photos")
    return found


def first_reading(project: Project) -> FirstReading:
    return FirstReading(EngineSettings.of(project.config), project.paths.cache)


def add(project: Project, features: bool = True) -> Added:
    given = first_reading(project) if features else None
    return at_bench(tools_of(project), add_images, [str(project.folder / "photos")], features=given)


def refs_of(project: Project) -> list[ImageRef]:
    with reading(project.database) as session:
        return list_refs(session)


def features_of(project: Project) -> dict[str, bytes]:
    """Features of all images by their key, as the next round gets them."""
    refs = refs_of(project)
    job = FeatureJob(EngineSettings.of(project.config), tuple(refs), project.paths.cache)
    result = tools_of(project).executor.submit(job)
    assert not result.failed
    return {ref.key: row.tobytes() for ref, row in zip(refs, result.features, strict=True)}


@pytest.fixture
def trunk_images(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of images that passed the trunk, a number for each batch."""
    sizes: list[int] = []
    run = trunk_passes.run_trunk

    def counted(trunk: Any, images: Any) -> Any:
        sizes.append(len(images))
        return run(trunk, images)

    monkeypatch.setattr(trunk_passes, "run_trunk", counted)
    return sizes


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file was opened, by name."""
    counts: Counter[str] = Counter()

    def counting(real: Any) -> Any:
        def open_(file: Any, *args: Any, **options: Any) -> Any:
            counts[Path(str(file)).name] += 1
            return real(file, *args, **options)

        return open_

    monkeypatch.setattr(builtins, "open", counting(open))
    monkeypatch.setattr(io, "open", counting(io.open))
    return counts


def test_one_reading_gives_the_features_of_the_separate_way_bit_for_bit(project, tmp_path, trunk_images):
    apart = with_photos(tmp_path, "two")

    one, two = add(project), add(apart, features=False)

    assert (one.new, one.unreadable, one.features) == (22, 2, 22)
    assert (two.new, two.unreadable, two.features) == (22, 2, None)
    assert sum(trunk_images) == 22
    found, expected = features_of(project), features_of(apart)
    assert sum(trunk_images) == 2 * 22  # those of the separate way only
    (deep,) = (ref.key for ref in refs_of(project) if ref.depth is not None)
    # It was alone in its batch, and the last bits depend on the size of a batch.
    rows = [np.frombuffer(of.pop(deep), dtype=np.float32) for of in (found, expected)]
    np.testing.assert_allclose(*rows, rtol=1e-5)
    assert found == expected


def test_each_file_is_opened_once(project, opened):
    add(project)

    names = [f"{number:02d}.png" for number in range(20)] + ["photo.jpg", "zz copy.png", "broken.png"]
    assert {opened[name] for name in names} == {1}
    assert opened["deep.png"] == 2  # how it looks depends on the others, so it is read again at the end


def test_the_rounds_that_follow_compute_nothing(tmp_path, trunk_images):
    project = make_project(tmp_path, n=40, add=False, model=MODEL, train=TRAIN)
    (project.folder / "small_trunk.py").write_text(TRUNK)
    add(project)
    assert sum(trunk_images) == 40

    for _ in range(3):
        assert alloop("run", "-C", project.folder).code == 0

    with reading(project.database) as session:
        assert find_last_round(session).number > 0
    assert sum(trunk_images) == 40


def test_several_processes_read_the_same(project, tmp_path, monkeypatch):
    monkeypatch.setattr("alloop.loop.intake.ingest.PARALLEL", 1)
    several = with_photos(tmp_path, "several", train={**TRAIN, "workers": 2})

    add(project)
    add(several)

    assert features_of(several) == features_of(project)


def test_images_of_the_pool_without_features_get_theirs(project, trunk_images):
    add(project, features=False)
    write_picture(project.folder / "photos" / "new.png", label="dog", number=99)

    assert add(project).features == 23
    assert add(project).features == 0
    assert sum(trunk_images) == 23


def test_an_interrupted_run_keeps_what_it_has_and_goes_on(project, trunk_images, monkeypatch):
    run = trunk_passes.run_trunk

    def stop_at_the_third(trunk: Any, images: Any) -> Any:
        if len(trunk_images) == 2:
            raise KeyboardInterrupt
        return run(trunk, images)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trunk_passes, "run_trunk", stop_at_the_third)
        add(project)
    done = sum(trunk_images)

    assert 0 < done < 22
    assert add(project).features == 22 - done
    assert sum(trunk_images) == 22


def test_trunks_side_by_side_each_keep_theirs(tmp_path, trunk_images):
    both = with_photos(tmp_path, "both", model={**MODEL, "backbone": ["small_trunk:make", "pixels"]})
    alone = with_photos(tmp_path, "alone", model=MODEL)
    shutil.copytree(both.folder / "photos", alone.folder / "photos", dirs_exist_ok=True)

    add(both)
    shutil.copytree(both.paths.cache, alone.paths.cache, dirs_exist_ok=True)
    n = sum(trunk_images)
    add(alone)

    assert sum(trunk_images) == n
    assert features_of(both).keys() == features_of(alone).keys()


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"backbone": "pixels", "mode": "finetune"}, "every round trains the trunk anew"),
        ({"backbone": "features:7"}, "were given, and it has no trunk"),
    ],
)
def test_a_model_without_a_frozen_trunk_is_refused_before_anything_is_added(tmp_path, model, said):
    refused = with_photos(tmp_path, "refused", model=model)

    with pytest.raises(ModelError, match=said):
        add(refused)

    assert refs_of(refused) == []


def test_the_command_says_how_many_features_it_computed(project):
    given = ("pool", "add", project.folder / "photos", "--features", "-C", project.folder)

    said, again = alloop(*given), alloop(*given, "--json")

    assert said.code == 0, said
    assert "22 new images" in said.out
    assert "Features of 22 images computed." in said.out
    assert again.data["features"] == 0
