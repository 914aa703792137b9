"""Names of devices: a missing device is an error that names the existing ones."""

from pathlib import Path

import pytest
import torch
from gpu_toys import Toys

from alloop.engine.build import build_hardware
from alloop.engine.device import choose_device, list_devices
from alloop.engine.features import run_features
from alloop.engine.settings import EngineSettings
from alloop.errors import ConfigError


def test_a_card_that_is_not_there_names_those_that_are(toys: Toys, device: torch.device, tmp_path: Path, measured):
    missing = "cuda:9" if device.type == "cuda" else "cuda"
    if missing in list_devices():
        pytest.skip("this machine has that card")
    job = toys.feature_job(toys.config("own_trunk"), torch.device(missing), tmp_path / "cache")

    with pytest.raises(ConfigError) as caught:
        run_features(job)

    measured.say("what it says", caught.value.message)
    assert f"no device '{missing}'" in caught.value.message
    assert all(name in caught.value.message for name in list_devices())


def test_auto_takes_the_card_and_a_batch_size_for_it(toys: Toys, card: torch.device, measured):
    config = toys.config("own_trunk", {"batch_size": None})

    hardware = build_hardware(EngineSettings.of(config), "auto")

    measured.same("device", hardware.device.type, "cuda")
    measured.same("batch size", hardware.batch_size, 256)
    measured.say("devices", ", ".join(list_devices()))
    measured.say("card", torch.cuda.get_device_name(choose_device("cuda")))
