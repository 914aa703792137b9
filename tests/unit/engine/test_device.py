"""The device: which one, how exactly it computes, and what happens when its memory does not suffice."""

import logging
import subprocess
import sys

import pytest
import torch

from alloop.engine import device, features, odin
from alloop.engine.executor_local import LocalExecutor
from alloop.engine.jobs import FeatureJob
from alloop.engine.score import run_score
from alloop.engine.settings import EngineSettings
from alloop.engine.train import run_train
from alloop.errors import ConfigError, DeviceError


@pytest.fixture(autouse=True)
def _unheard():
    device._say_why_not_cuda.cache_clear()
    yield
    device._say_why_not_cuda.cache_clear()


# --- which one


@pytest.mark.parametrize("name", ["tpu", "cuda:99", "gpu"])
def test_a_device_that_is_not_there_is_answered_with_those_that_are(name):
    with pytest.raises(ConfigError, match=f"no device '{name}' here; there is:.*cpu"):
        device.choose_device(name)


def test_cuda_never_becomes_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    with pytest.raises(ConfigError, match="no device 'cuda' here; there is: cpu"):
        device.choose_device("cuda")


def test_a_card_that_is_not_there_is_answered_with_those_that_are(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)

    with pytest.raises(ConfigError, match="no device 'cuda:9' here; there is: cuda, cuda:0, cuda:1, cpu"):
        device.choose_device("cuda:9")
    assert device.choose_device("cuda:1") == torch.device("cuda:1")
    assert device.choose_device("auto") == torch.device("cuda")


def test_auto_takes_what_is_there():
    assert device.choose_device("auto").type in {"cuda", "mps", "cpu"}
    assert device.choose_device("cpu") == torch.device("cpu")


def _unusable_card(monkeypatch):
    def too_old():
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\nPlease update.")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", too_old)
    monkeypatch.setattr(device, "_has_nvidia_driver", lambda: True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_auto_says_once_why_it_takes_the_cpu_although_there_is_a_card(monkeypatch, caplog):
    _unusable_card(monkeypatch)

    chosen = [device.choose_device("auto") for _ in range(2)]

    assert chosen == [torch.device("cpu")] * 2
    (said,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "NVIDIA card" in said.getMessage()
    assert "driver on your system is too old (found version 11040)" in said.getMessage()


def test_cuda_on_a_card_that_cannot_be_used_names_the_reason(monkeypatch):
    _unusable_card(monkeypatch)

    with pytest.raises(ConfigError, match=r"there is: cpu\. This machine has an NVIDIA card, but .* driver .* too old"):
        device.choose_device("cuda")


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_a_card_that_was_hidden_on_purpose_is_not_spoken_of(monkeypatch, caplog, hidden):
    _unusable_card(monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)

    assert device.choose_device("auto") == torch.device("cpu")
    assert not caplog.records


# --- how exactly


def _float32_modes() -> list[object]:
    return [getattr(place, name) for place, name, _ in device._tf32_settings()]


@pytest.mark.parametrize("context", [device.full_float32, device.deterministic])
def test_float32_is_not_rounded_to_tf32_and_settings_come_back(context):
    wanted = [value for *_, value in device._tf32_settings()]
    before = _float32_modes()

    with context():
        inside = _float32_modes()

    assert inside == wanted
    assert before != wanted  # PyTorch's default for convolutions is TF32
    assert _float32_modes() == before


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="torch before 2.9 has the old names only")
def test_a_process_that_asked_for_tf32_by_torchs_new_names_is_overridden_too():
    torch.backends.fp32_precision = "tf32"
    try:
        with device.full_float32():
            modes = _float32_modes()
        assert torch.backends.cudnn.conv.fp32_precision == "tf32"
    finally:
        torch.backends.fp32_precision = "none"
        torch.backends.cudnn.allow_tf32 = True  # repairs what mixing both names has left

    assert modes == [False, False, "ieee", "ieee", "ieee"]


def test_the_trunk_of_features_and_of_odin_runs_in_full_float32(toys, monkeypatch):
    seen = []
    normalize = features.Backbone.normalize

    def looking(backbone, images):
        seen.append(torch.backends.cudnn.allow_tf32)
        return normalize(backbone, images)

    config = toys.config(toys.trunk, weights="none")
    files = run_train(toys.train_job(config)).files
    monkeypatch.setattr(features.Backbone, "normalize", looking)
    run_score(toys.score_job(files, config))
    assert seen
    assert not any(seen)

    modes = []
    score = odin.ood.odin
    monkeypatch.setattr(
        odin.ood, "odin", lambda *of, **more: modes.append(torch.backends.cudnn.allow_tf32) or score(*of, **more)
    )
    wanted = config.model_copy(update={"acquisition": config.acquisition.model_copy(update={"ood_score": "odin"})})
    run_score(toys.score_job(files, wanted))
    assert modes
    assert not any(modes)


@pytest.mark.parametrize(("given", "expected"), [(None, ":4096:8"), (":16:8", ":16:8")])
def test_the_setting_that_makes_cublas_deterministic_is_made_before_torch_is_loaded(given, expected, monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    if given:
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", given)
    code = "import os, sys, alloop; print(os.environ['CUBLAS_WORKSPACE_CONFIG'], 'torch' in sys.modules)"

    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert said.split() == [expected, "False"]


# --- memory


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB)"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`"),
        RuntimeError("nvjpegDecode failed: 5"),
    ],
)
def test_a_lack_of_memory_is_known_by_all_its_names(error):
    assert device.is_out_of_memory(error)
    assert device.may_fit_smaller(error)


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_NOT_INITIALIZED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR",
        "GET was unable to find an engine to execute this computation",
    ],
)
def test_what_may_be_a_lack_of_memory_is_tried_smaller_and_not_called_so(text):
    assert device.may_fit_smaller(RuntimeError(text))
    assert not device.is_out_of_memory(RuntimeError(text))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        RuntimeError("nvjpegDecode failed: 3"),
        ValueError("out of memory"),
    ],
)
def test_other_errors_are_not_mistaken_for_a_lack_of_memory(error):
    assert not device.may_fit_smaller(error)


def test_the_second_try_starts_when_nothing_holds_the_tensors_of_the_first(monkeypatch):
    held = []

    class Big:
        def __init__(self):
            held.append(1)

        def __del__(self):
            held.pop()

    def short(part):
        big = Big()
        if len(part) > 2:
            raise torch.OutOfMemoryError("out of memory")
        assert len(held) == 1
        del big
        return part

    seen = []
    monkeypatch.setattr(device, "release_memory", lambda: seen.append((len(held), sys.exc_info()[0])))

    assert device.in_halves(short, torch.arange(4)).tolist() == [0, 1, 2, 3]
    assert seen == [(0, None)]


def test_a_single_image_that_does_not_fit_is_an_error():
    def never(_: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        device.in_halves(never, torch.zeros(1, 3))


def test_other_errors_of_the_trunk_are_raised_at_once():
    def wrong(_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        device.in_halves(wrong, torch.zeros(8, 3))


CUDA_SAYS = (
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 5.43 GiB is "
    "free. Including non-PyTorch memory, this process has 33.94 GiB memory in use."
)


def test_features_that_do_not_fit_one_by_one_are_an_error_that_says_what_to_do(toys, monkeypatch):
    config = toys.config(train=toys.config().train.model_copy(update={"batch_size": 4}))
    normalize, calls = features.Backbone.normalize, []

    def full(backbone, images):
        calls.append(len(images))
        if len(calls) > 3:
            raise torch.OutOfMemoryError(CUDA_SAYS)
        return normalize(backbone, images)

    monkeypatch.setattr(features.Backbone, "normalize", full)
    job = FeatureJob(EngineSettings.of(config), toys.images, toys.root / "cache", "cpu")

    with pytest.raises(DeviceError, match=r"smallest batch: CUDA out of memory\. .* of which 5\.43 GiB is free\.") as e:
        LocalExecutor().submit(job)

    assert "Including" not in str(e.value)
    assert "image_size" in e.value.hint
    assert calls == [4, 4, 4, 4, 2, 1]
    monkeypatch.setattr(features.Backbone, "normalize", normalize)
    told = []
    LocalExecutor().submit(job, lambda label, done, total: told.append(total))
    assert told[0] == 90 - 12  # what was there before is kept


def test_scoring_and_training_explain_a_lack_of_memory_too(toys, monkeypatch):
    files = run_train(toys.train_job()).files

    def full(*_):
        raise RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")

    monkeypatch.setattr(features.Backbone, "normalize", full)

    with pytest.raises(DeviceError, match="CUDNN_STATUS_ALLOC_FAILED"):
        run_score(toys.score_job(files, cache=toys.root / "fresh"))
    with pytest.raises(DeviceError, match="CUDNN_STATUS_ALLOC_FAILED"):
        run_train(toys.train_job(cache=toys.root / "fresh", out=toys.root / "runs" / "other"))
    assert not (toys.root / "runs" / "other").exists()
