"""Read and validate configuration: one sentence naming file, key and fix for every mistake.

It knows YAML and JSON Schema; it knows nothing of experiments' meaning (see `plan`). Defaults written in the schemas
are filled in, so that the rest of the code never guesses a missing value.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import yaml
from jsonschema import Draft202012Validator, validators
from jsonschema.exceptions import ValidationError


class ConfigError(Exception):
    """A mistake of the person who wrote the configuration; the message is one sentence for them."""


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """A safe loader that refuses a key given twice in one mapping (YAML silently keeps the last)."""


def _unique_mapping(loader, node, deep=False):
    seen = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=deep)
        if key in seen:
            raise yaml.constructor.ConstructorError(
                problem=f"key {key!r} is given twice", problem_mark=key_node.start_mark
            )
        seen.add(key)
    return loader.construct_mapping(node, deep)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def read_yaml(path: str | Path) -> dict:
    """Parse a YAML file of keys and values.

    Raises ConfigError with file and line for bad syntax or a key given twice, and for a file of anything but keys.
    """
    try:
        with open(path, encoding="utf-8") as f:
            content = yaml.load(f, Loader=_Loader)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: this is no text in UTF-8 (byte {error.start})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{where}: {getattr(error, 'problem', None) or error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: the file must be a mapping of keys to values; it is {_shown(content)}")
    return content


def merge(base: dict, over: dict) -> dict:
    """`over` laid deeply over `base`: mappings merge, everything else is replaced. Neither input is changed."""
    result = dict(base)
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = merge(result[key], value)
        else:
            result[key] = value
    return result


@lru_cache
def schema(name: str) -> dict:
    """The JSON schema `config/schemas/<name>.schema.yaml`, found beside this checkout's workflow folder."""
    root = Path(__file__).resolve().parents[3]
    return read_yaml(root / "config" / "schemas" / f"{name}.schema.yaml")


def _filling(cls):
    def properties(validator, props, instance, parent):
        if isinstance(instance, dict):
            for key, sub in props.items():
                if "default" in sub and key not in instance:
                    instance[key] = _copy(sub["default"])
        yield from cls.VALIDATORS["properties"](validator, props, instance, parent)

    return validators.extend(cls, {"properties": properties})


def _copy(value):
    if isinstance(value, dict):
        return {k: _copy(v) for k, v in value.items()}
    return [_copy(v) for v in value] if isinstance(value, list) else value


_Validator = _filling(Draft202012Validator)


@lru_cache
def _validator(name: str, part: str | None):
    whole = schema(name)
    used = whole if part is None else {"$ref": f"#/$defs/{part}", "$defs": whole["$defs"]}
    return _Validator(used)


def validated(instance: dict, name: str, where: str, part: str | None = None, prefix: str = "") -> dict:
    """A copy of `instance` with defaults filled, checked against a schema or one of its `$defs` (`part`).

    `where` names the file and `prefix` the key under which the instance stands, for the message.
    Whole floats become integers where the schema asks for integers: JSON Schema takes `1.0` for one, paths do not.
    Raises ConfigError: one sentence naming file, key and fix.
    """
    for path, value in _not_finite(instance, prefix):
        raise ConfigError(f"{where}: {path}: {value} is not possible: write a finite number")
    filled = _copy(instance)
    errors = sorted(_validator(name, part).iter_errors(filled), key=lambda e: (len(e.absolute_path), str(e.path)))
    if errors:
        raise ConfigError(_sentence(errors[0], where, prefix))
    whole = schema(name)
    return _with_integers(filled, whole if part is None else whole["$defs"][part], whole["$defs"])


def _not_finite(value, path: str) -> Iterator[tuple[str, str]]:
    """The path and YAML's spelling of every `.nan` and `.inf`, which comparisons and JSON let through."""
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _not_finite(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, float) and not math.isfinite(value):
        yield path, ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"


def _with_integers(value, sub: dict, defs: dict):
    """`value`, which is valid, with a whole float as an integer wherever the schema `sub` has integers."""
    if "$ref" in sub:
        value = _with_integers(value, defs[sub["$ref"].removeprefix("#/$defs/")], defs)
    for alternative in [*sub.get("oneOf", []), *sub.get("anyOf", []), *sub.get("allOf", [])]:
        value = _with_integers(value, alternative, defs)
    kinds = sub.get("type", [])
    if isinstance(value, float) and "integer" in ([kinds] if isinstance(kinds, str) else kinds) and value.is_integer():
        return int(value)
    if isinstance(value, list) and "items" in sub:
        return [_with_integers(item, sub["items"], defs) for item in value]
    if isinstance(value, dict):
        others = sub.get("additionalProperties")
        others = others if isinstance(others, dict) else {}
        known = sub.get("properties", {})
        return {key: _with_integers(item, known.get(key, others), defs) for key, item in value.items()}
    return value


def _sentence(error: ValidationError, where: str, prefix: str) -> str:
    path = ".".join([prefix] * bool(prefix) + [str(p) for p in error.absolute_path])
    at = f"{where}: {path}: " if path else f"{where}: "
    value = error.instance
    if error.validator == "additionalProperties":
        known = list(error.schema.get("properties", {}))
        unknown = [k for k in value if k not in known]
        return f"{at}unknown key {unknown[0]!r}{closest(unknown[0], known)}"
    if error.validator == "required":
        missing = [k for k in error.validator_value if k not in value]
        return f"{at}the key {missing[0]!r} is missing"
    if error.validator == "type" and isinstance(value, str) and number_as_text(value):
        return f"{at}{value!r} is read as text by YAML; write it with a point, as {_with_point(value)}"
    if error.validator == "type":
        return f"{at}must be {_wanted([error])}; it is {_shown(value)}"
    if error.validator == "enum":
        return f"{at}{value!r} is not possible{closest(str(value), [str(v) for v in error.validator_value])}"
    if error.validator == "pattern" and "propertyNames" in list(error.absolute_schema_path):
        return f"{at}{value!r} cannot be a name, because it becomes part of a path: use letters, digits, _ . + -"
    if error.validator == "pattern":
        return f"{at}{value!r} does not have the form {error.validator_value}"
    if error.validator in ("oneOf", "anyOf") and error.context:
        if all(e.validator == "type" and e.absolute_path == error.absolute_path for e in error.context):
            quotes = " without quotes" * (value == "null")
            shown = "null" if value is None else _shown(value)
            return f"{at}{shown} is not possible: write {_wanted(error.context)}{quotes}"
        best = min(error.context, key=lambda e: (-len(e.absolute_path), e.validator == "type"))
        return _sentence(best, where, prefix)
    return f"{at}{error.message}"


KINDS = {
    "string": "a text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
    "object": "a mapping",
    "null": "null",
}
"""JSON Schema's types in the words of an error sentence, null last."""


def _wanted(errors: list[ValidationError]) -> str:
    """What may stand where these errors of type are, with the keys that a mapping needs."""
    words = {}
    for error in errors:
        for kind in [error.validator_value] if isinstance(error.validator_value, str) else error.validator_value:
            words[kind] = KINDS[kind]
            keys = error.schema.get("required") or list(error.schema.get("properties", {}))
            if kind == "object" and keys and len(errors) > 1:
                with_key = "the key" if len(keys) == 1 else "the keys" if "required" in error.schema else "keys among"
                words[kind] += f" with {with_key} {', '.join(keys)}"
    *first, last = [words[kind] for kind in KINDS if kind in words]
    return f"{', '.join(first)}{',' * ('with' in first[-1])} or {last}" if first else last


def _shown(value) -> str:
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    if value is None:
        return "empty"
    return str(value).lower() if isinstance(value, bool) else repr(value)


def number_as_text(value: str) -> bool:
    """True for strings such as `1e-4` that a person meant as a number and YAML 1.1 reads as text."""
    return bool(re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value))


def _with_point(value: str) -> str:
    mantissa, exponent = re.split("[eE]", value)
    sign = "" if exponent.startswith(("+", "-")) else "+"
    return f"{mantissa if '.' in mantissa else mantissa + '.0'}e{sign}{exponent}"


def closest(word: object, known: list) -> str:
    """The tail of an error sentence: a likely meant word, then the known ones where they fit a line.

    What stands in a configuration need not be text: a name may have been written as 3 or left empty.
    """
    word, known = str(word), [str(name) for name in known]
    near = {name: difflib.SequenceMatcher(None, name, word).ratio() for name in known}
    best = [name for name in near if near[name] >= max([0.5, *near.values()])]
    if len(best) > 1:  # "jp" is as close to "pt" as to "ja", and "sp" to "pt" as to "es"
        best = [name for name in best if name[:1] == word[:1]]
    guess = f"; did you mean {best[0]!r}?" if best else "."
    listed = known if len(known) <= 20 else [*known[:20], f"and {len(known) - 20} more"]
    return f"{guess} Known: {', '.join(listed)}"
