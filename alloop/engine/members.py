"""Networks of an ensemble, trained one after another and kept on disk, so that a killed run continues with the next."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from alloop.engine.features import Failed
from alloop.engine.jobs import TrainJob
from alloop.engine.model_files import Network, read_network, write_network
from alloop.errors import ModelError
from alloop.files import explain_os_error, sha256_of, write_json


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A trained network and its predictions for the holdout.

    Attributes:
        holdout_member_log_probs: Predictions of every member [M, N, K] for the holdout images that could be read, or
            [M, N, 2, K] by raw and smoothed heads.
        holdout_ids: Ids of these images [N], in the order of the job.
        history: Record of the training, JSON-able.
        failed: Images that could not be read, and the reasons.
    """

    network: Network
    holdout_member_log_probs: Tensor
    holdout_ids: tuple[int, ...]
    history: dict[str, object]
    failed: Failed


class Members:
    """Fitted networks in order. A single network stays in memory; several are on disk, and one is read at a time."""

    def __init__(self, job: TrainJob, n_networks: int, graph: Mapping[str, object]) -> None:
        """`graph` says which graph of the pool the heads are trained with."""
        self._n = n_networks
        self._folder = job.out.parent / f".{job.out.name}.members"
        self._key = _key(job, graph) if n_networks > 1 else ""  # of a large pool it takes a while
        self._only: Fitted | None = None

    def fit(self, number: int, train: Callable[[int], Fitted]) -> Fitted:
        """Return the network that an interrupted run of the same job left, or train a new one.

        Raises:
            ModelError: Training of the network diverged, so the ensemble is rejected.
        """
        if self._n == 1:
            self._only = _checked(train(number), number)
            return self._only
        try:
            kept = self._read(number)
            if kept is None:
                kept = _checked(train(number), number)
                self._write(number, kept)
        except OSError as error:
            raise explain_os_error(error, self._folder) from error
        return kept

    def networks(self) -> Iterator[Network]:
        """Yield the networks, one at a time."""
        if self._only is not None:
            yield self._only.network
            return
        for number in range(self._n):
            yield read_network(self._weights(number))

    def clear(self) -> None:
        """Delete the files, once the networks are part of a model version."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _read(self, number: int) -> Fitted | None:
        """Return the network that an interrupted run of the same job left; None without one, or if it is damaged."""
        try:
            data = json.loads((self._folder / f"member-{number}.json").read_bytes())
            if data["key"] != self._key or sha256_of(self._weights(number)) != data["weights_sha256"]:
                return None
            return Fitted(
                network=read_network(self._weights(number)),
                holdout_member_log_probs=torch.tensor(data["holdout_member_log_probs"]).reshape(data["shape"]),
                holdout_ids=tuple(data["holdout_ids"]),
                history=data["history"],
                failed=tuple((image_id, reason) for image_id, reason in data["failed"]),
            )
        except (FileNotFoundError, ValueError, KeyError, TypeError, RuntimeError):
            return None

    def _write(self, number: int, fitted: Fitted) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        record = self._folder / f"member-{number}.json"
        record.unlink(missing_ok=True)  # it does not describe the weights that are written next
        write_network(fitted.network, self._weights(number))
        whole = {
            "key": self._key,
            "weights_sha256": sha256_of(self._weights(number)),
            "holdout_member_log_probs": fitted.holdout_member_log_probs.flatten().tolist(),
            "shape": list(fitted.holdout_member_log_probs.shape),
            "holdout_ids": list(fitted.holdout_ids),
            "history": fitted.history,
            "failed": [list(pair) for pair in fitted.failed],
        }
        write_json(record, whole)

    def _weights(self, number: int) -> Path:
        return self._folder / f"member-{number}.safetensors"


def _checked(fitted: Fitted, number: int) -> Fitted:
    tensors = [*fitted.network.heads.state_dict().values(), fitted.holdout_member_log_probs]
    if fitted.network.smoothed is not None:
        tensors += fitted.network.smoothed.state_dict().values()
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
        raise ModelError(
            f"Training diverged: member {number} has weights or predictions that are not finite.",
            "Set a smaller [train] learning_rate, or other [train] loss_parameters.",
        )
    return fitted


def _key(job: TrainJob, graph: Mapping[str, object]) -> str:
    """Digest of everything that a network depends on, except the device."""
    settings = job.settings
    uses = (("train", job.images, job.targets), ("holdout", job.holdout, job.holdout_targets))
    lines = [settings.model.model_dump_json(), settings.train.model_dump_json(), str(settings.seed), str(job.seed)]
    lines += [repr(job.classes), repr(job.head_classes), json.dumps(graph, sort_keys=True)]
    for use, images, targets in uses:
        lines += sorted(f"{use} {ref.key} {target}" for ref, target in zip(images, targets, strict=True))
    lines += [f"unlabeled {ref.key}" for ref in job.list_unlabeled()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
