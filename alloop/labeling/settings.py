"""Settings of back ends as protocols. The models of alloop.toml fit them, so `labeling` does not import `config`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol


class LabelStudioSettings(Protocol):
    """`[labeling.label_studio]`."""

    @property
    def url(self) -> str: ...
    @property
    def project_id(self) -> int | None: ...
    @property
    def api_key_file(self) -> Path | None: ...
    @property
    def timeout(self) -> float: ...
    @property
    def push_batch(self) -> int: ...


class ImagesSettings(Protocol):
    """`[labeling.images]`."""

    @property
    def via(self) -> str: ...
    @property
    def root(self) -> Path | None: ...
    @property
    def server_root(self) -> str | None: ...
    @property
    def url_prefix(self) -> str | None: ...


class OracleSettings(Protocol):
    """`[labeling.oracle]`."""

    @property
    def file(self) -> Path | None: ...
    @property
    def noise(self) -> float: ...
    @property
    def annotators(self) -> int: ...
    @property
    def columns(self) -> Sequence[str]: ...


class CsvSettings(Protocol):
    """`[labeling.csv]`."""

    @property
    def folder(self) -> Path: ...


class LabelingSettings(Protocol):
    """`[labeling]`."""

    @property
    def backend(self) -> str: ...
    @property
    def preannotate(self) -> bool: ...
    @property
    def annotations_per_image(self) -> int: ...
    @property
    def label_studio(self) -> LabelStudioSettings: ...
    @property
    def images(self) -> ImagesSettings: ...
    @property
    def oracle(self) -> OracleSettings: ...
    @property
    def csv(self) -> CsvSettings: ...
    @property
    def options(self) -> Mapping[str, Any]: ...


class ProjectSettings(Protocol):
    """`[project]`."""

    @property
    def name(self) -> str: ...
    @property
    def task(self) -> str: ...
    @property
    def classes(self) -> Sequence[str]: ...
    @property
    def seed(self) -> int: ...


class Settings(Protocol):
    """The part of alloop.toml that labeling reads."""

    @property
    def project(self) -> ProjectSettings: ...
    @property
    def labeling(self) -> LabelingSettings: ...
