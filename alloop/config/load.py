"""Reading of alloop.toml and the environment. Errors name file or variable, key, value and the nearest key."""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from alloop.config.schema import Config
from alloop.errors import ConfigError, did_you_mean

FILE_NAME = "alloop.toml"
PREFIX = "ALLOOP__"
URL_VARIABLE, URL_KEYS = "LABEL_STUDIO_URL", ("labeling", "label_studio", "url")
MAY_BE_SECRET = {"database", "label_studio", "options"}  # sections whose values are never shown


def load_config(folder: Path, environ: Mapping[str, str] = os.environ) -> Config:
    """Read a workspace's settings.

    Raises:
        ConfigError: The file is missing, is not TOML, or holds an unknown setting or a wrong value.
    """
    path = folder / FILE_NAME
    try:
        text = path.read_text(encoding="utf-8-sig")  # editors on Windows write a byte order mark
    except FileNotFoundError as error:
        raise ConfigError(
            f"{folder} is not an alloop workspace: it has no {FILE_NAME}.",
            "Create one with `alloop init DIR --classes A,B`, or name one with --workspace DIR.",
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} cannot be read: it is not UTF-8.", "Save it as UTF-8 in your editor.") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}.") from error
    return parse_config(text, str(path), environ)


def parse_config(text: str, name: str, environ: Mapping[str, str] = os.environ) -> Config:
    """Read settings from text. Errors call the text `name`."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{name} is not valid TOML: {error}.") from error
    variables = _apply_environment(data, environ)
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        _restore_text(data, error, variables, environ)
    return validate_config(data, name, variables)


def validate_config(
    data: Mapping[str, Any], name: str, variables: Mapping[tuple[str, ...], str] | None = None
) -> Config:
    """Check plain values.

    Args:
        data: Settings from TOML or from a stored round.
        name: Name of the data in errors.
        variables: Key → environment variable, for keys that an environment variable set.
    """
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        # pydantic's own message would show every value, also secret ones.
        raise _explain(error, name, variables or {}) from None


def set_values(config: Config, **sections: Mapping[str, Any]) -> Config:
    """Return the config with some settings replaced: `set_values(config, loop={"batch_size": 5})`."""
    data = config.model_dump(mode="json")
    for section, values in sections.items():
        data[section] = {**data[section], **values}
    return validate_config(data, "command line")


def freeze_config(config: Config) -> dict[str, Any]:
    """Return the settings that a round stores: all but the database URL and the options of other packages' back ends.

    These may hold passwords, and what was measured does not depend on them.
    """
    return config.model_dump(mode="json", exclude={"database": True, "labeling": {"options"}})


def _apply_environment(data: dict[str, Any], environ: Mapping[str, str]) -> dict[tuple[str, ...], str]:
    """Put variables `ALLOOP__SECTION__KEY=value` into the data. A value is read as TOML if possible, else as text."""
    used: dict[tuple[str, ...], str] = {}
    for variable in sorted(environ):
        if variable.upper().startswith(PREFIX):
            keys = tuple(part.lower() for part in variable[len(PREFIX) :].split("__"))
            _put(data, keys, parse_value(environ[variable]), variable)
            used[keys] = variable
    if url := environ.get(URL_VARIABLE):
        _put(data, URL_KEYS, url, URL_VARIABLE)
        used[URL_KEYS] = URL_VARIABLE
    return used


def _put(data: dict[str, Any], keys: tuple[str, ...], value: Any, variable: str) -> None:
    table = data
    for key in keys[:-1]:
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            raise ConfigError(f"Environment variable {variable}: '{key}' is a setting, not a table.")
    table[keys[-1]] = value


def _restore_text(
    data: dict[str, Any], error: ValidationError, variables: Mapping[tuple[str, ...], str], environ: Mapping[str, str]
) -> None:
    """Take a variable's own text where a setting is text: a name such as 2026 was read as a number."""
    for details in error.errors(include_url=False):
        keys = tuple(map(str, details["loc"]))
        if keys in variables and details["type"] in {"string_type", "path_type"}:
            _put(data, keys, environ[variables[keys]], variables[keys])


def parse_value(text: str) -> Any:
    """Read a value as TOML if possible, else as text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _explain(error: ValidationError, name: str, variables: Mapping[tuple[str, ...], str]) -> ConfigError:
    messages = [_explain_one(details, name, variables) for details in error.errors(include_url=False)]
    return ConfigError("\n".join(messages))


def _explain_one(details: ErrorDetails, name: str, variables: Mapping[tuple[str, ...], str]) -> str:
    keys = tuple(str(part) for part in details["loc"])
    named = next((variables[keys[:n]] for n in range(len(keys), 0, -1) if keys[:n] in variables), None)
    where = f"environment variable {named}" if named else name
    table = f"[{'.'.join(keys[:-1])}] " if len(keys) > 1 else ""
    if details["type"] == "extra_forbidden":
        return f"{where}: {table}has no setting '{keys[-1]}'{_nearest(keys)}"
    if details["type"] == "missing":
        return f"{where}: {table}needs '{keys[-1]}'."
    if details["type"] == "value_error":
        section = f"[{'.'.join(keys)}] " if keys else ""
        message = details["msg"].removeprefix("Value error, ")
        return f"{where}: {section}{message}{'' if message.endswith(('.', '?')) else '.'}"
    if details["type"] in {"model_type", "dict_type"}:
        return f"{where}: '{keys[-1]}' is a table; write [{'.'.join(keys)}] and its settings below it."
    is_item = isinstance(details["loc"][-1], int)
    table = f"[{'.'.join(keys[:-2])}] " if is_item else table
    setting = f"{keys[-2]}[{keys[-1]}]" if is_item else keys[-1]
    value = "" if MAY_BE_SECRET & {*keys} else f" = {details['input']!r}"
    reason = "it is a list; write it in brackets" if details["type"] == "tuple_type" else _lower_first(details["msg"])
    return f"{where}: {table}{setting}{value} is refused: {reason}."


def _nearest(keys: tuple[str, ...]) -> str:
    """Suggest the known name that was probably meant."""
    model: type[BaseModel] = Config
    for key in keys[:-1]:
        field = model.model_fields.get(key)
        if field is None or not isinstance(field.annotation, type) or not issubclass(field.annotation, BaseModel):
            return "."
        model = field.annotation
    return did_you_mean(keys[-1], model.model_fields)


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
