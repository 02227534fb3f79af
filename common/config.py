"""A frozen dataclass becomes a strict command line: one flag per field, presets, and errors of one line.

Layers, the later wins: defaults of the class, TASKS[task], preset.values, preset.by_task[task], --set, flags.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import math
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeVar

C = TypeVar("C")
DEFAULT_PRESET = "cpu"


@dataclass(frozen=True)
class Preset:
    """A named override of values; `claim` is the one line that says which claim it can still test."""

    claim: str
    values: Mapping[str, Any] = field(default_factory=dict)
    by_task: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def setting(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: Sequence[Any] | None = None,
) -> Any:
    """A dataclass field with its meaning and its inclusive bounds; for tuples they hold for each element."""
    return field(default=default, metadata={"help": help, "low": low, "high": high, "choices": choices})


def user_error(message: str) -> NoReturn:
    """Ends the program with one line on stderr and exit code 2."""
    print("error: " + " ".join(message.split()), file=sys.stderr)
    raise SystemExit(2)


def parse(
    config_class: type[C],
    tasks: Mapping[str, Mapping[str, Any]],
    presets: Mapping[str, Preset],
    argv: Sequence[str] | None,
    *,
    prog: str,
    description: str,
    extra: Callable[[argparse.ArgumentParser], None] | None = None,
) -> tuple[C, argparse.Namespace]:
    """Returns the config and the options that are no field of it: `preset`, `run` (Path or None), and extras.

    `options.changed` holds the fields, besides task and seed, that the command line has set by itself.

    The first key of `tasks` is the default task. `extra(parser)` may add options of a program's own.
    Anything wrong ends the program with one line "prog: error: ..." on stderr and exit code 2.
    """
    parser = _build_parser(config_class, tasks, presets, prog, description)
    if extra is not None:
        extra(parser)
    options, unknown = parser.parse_known_args(argv)
    if unknown:
        known = [flag for flag in parser._option_string_actions if flag.startswith("--")]
        name = unknown[0].split("=")[0]
        kind = "option" if name.startswith("-") else "argument"
        parser.error(f"unknown {kind} {name}{_hint(name, known)} (--help lists all)")
    given = {name[6:]: value for name, value in vars(options).items() if name.startswith("field:")}
    words: list[str] = options.set
    rest = {k: v for k, v in vars(options).items() if k not in ("set", "print_config") and not k.startswith("field:")}
    try:
        config, sources = _layered(config_class, tasks, presets, options.preset, words, given)
    except ValueError as error:
        parser.error(str(error))
    if options.print_config:
        _print_config(config, sources)
        raise SystemExit(0)
    named = {word.partition("=")[0].replace("-", "_") for word in words} | set(given)
    changed = {k: v for k, v in to_dict(config).items() if k in named - {"task", "seed"}}
    return config, argparse.Namespace(**rest, changed=changed)


def to_dict(config: Any) -> dict[str, Any]:
    """The fields as JSON-able values (tuples become lists)."""
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def from_dict(config_class: type[C], values: Mapping[str, Any]) -> C:
    """The inverse of `to_dict`. Raises ValueError for a missing, unknown, ill-typed or impossible value."""
    missing = sorted({f.name for f in dataclasses.fields(typing.cast(Any, config_class))} - set(values))
    if missing:
        raise ValueError(f"missing {', '.join(missing)}")
    return config_class(**_checked(config_class, values, "config"))


def _layered(
    config_class: type[C],
    tasks: Mapping[str, Mapping[str, Any]],
    presets: Mapping[str, Preset],
    preset_name: str,
    words: Sequence[str],
    flags: Mapping[str, Any],
) -> tuple[C, dict[str, str]]:
    """The config, and for each field the layer that its value comes from."""
    if preset_name not in presets:
        raise ValueError(f"unknown preset {preset_name!r}{_hint(preset_name, presets)}; allowed: {', '.join(presets)}")
    preset = presets[preset_name]
    given: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            raise ValueError(f"--set takes field=value, not {word!r}")
        given[name.replace("-", "_")] = text
    given = _checked(config_class, {**given, **flags}, "option")
    task = given.get("task", preset.values.get("task", next(iter(tasks))))
    if task not in tasks:
        raise ValueError(f"unknown task {task!r}{_hint(task, tasks)}; allowed: {', '.join(tasks)}")
    values: dict[str, Any] = {"task": task}
    sources = {item.name: "default" for item in dataclasses.fields(typing.cast(Any, config_class))}
    for source, layer in (
        (f"task {task}", tasks[task]),
        (f"preset {preset_name}", preset.values),
        (f"preset {preset_name}", preset.by_task.get(task, {})),
        ("option", given),
    ):
        values |= _checked(config_class, layer, source)
        sources |= dict.fromkeys(layer, source)
    return config_class(**values), sources


def _print_config(config: Any, sources: Mapping[str, str]) -> None:
    """A line a field, as --set takes it, and where its value comes from."""
    for name, value in to_dict(config).items():
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        text = text.lower() if value is None or isinstance(value, bool) else text
        print(f"{f'{name}={text}':<48}# {sources[name]}")


def _checked(config_class: type[Any], values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The values with their declared types; text is converted. Raises ValueError naming field and source."""
    types_of = typing.get_type_hints(config_class)
    fields = {f.name: f for f in dataclasses.fields(config_class)}
    result = {}
    for name, value in values.items():
        if name not in fields:
            raise ValueError(f"{source}: unknown field {name!r}{_hint(name, fields)} (--help lists all)")
        try:
            result[name] = _convert(value, types_of[name])
        except (ValueError, TypeError):
            wanted = _type_text(types_of[name])
            raise ValueError(f"{source}: {name} must be {wanted}, not {value!r}") from None
        _check_bounds(fields[name], result[name], source)
    return result


def _convert(value: Any, kind: Any) -> Any:
    """Raises ValueError or TypeError if the value is not of the kind and no text that reads as it."""
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        if value is None or value == "none":
            return None
        return _convert(value, next(k for k in typing.get_args(kind) if k is not type(None)))
    if typing.get_origin(kind) is tuple:
        element = typing.get_args(kind)[0]
        parts = [p for p in value.split(",") if p.strip()] if isinstance(value, str) else value
        return tuple(_convert(part, element) for part in parts)
    if kind is bool and isinstance(value, str):
        return {"true": True, "false": False}.get(value.lower()) if value.lower() in ("true", "false") else _no()
    if isinstance(value, bool) is not (kind is bool):
        _no()
    if kind is float and isinstance(value, int | float | str):
        number = float(value)
        return number if math.isfinite(number) else _no()
    if kind is int and isinstance(value, str):
        return int(value)
    return value if isinstance(value, kind) else _no()


def _no() -> NoReturn:
    raise ValueError


def _check_bounds(item: dataclasses.Field[Any], value: Any, source: str) -> None:
    low, high, choices = (item.metadata.get(key) for key in ("low", "high", "choices"))
    for element in value if isinstance(value, tuple) else (value,):
        if element is None:
            continue
        if choices is not None and element not in choices:
            allowed = ", ".join(str(choice) for choice in choices)
            close = _hint(str(element), [str(choice) for choice in choices])
            raise ValueError(f"{source}: {item.name} is {element!r}{close}; allowed: {allowed}")
        if (low is not None and element < low) or (high is not None and element > high):
            raise ValueError(f"{source}: {item.name} is {element}, allowed: {_bounds_text(item)}")


def _hint(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _type_text(kind: Any) -> str:
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return " or ".join(_type_text(k) for k in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        return f"{_type_text(typing.get_args(kind)[0])}, or several with commas between"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "none"}
    return names[kind]


def _bounds_text(item: dataclasses.Field[Any]) -> str:
    low, high = item.metadata.get("low"), item.metadata.get("high")
    if low is not None and high is not None:
        return f"{low} to {high}"
    return f"at least {low}" if low is not None else f"at most {high}" if high is not None else ""


class Parser(argparse.ArgumentParser):
    """argparse with errors of one line."""

    def error(self, message: str) -> NoReturn:
        """One line on stderr and exit code 2."""
        print(f"{self.prog}: error: " + " ".join(message.split()), file=sys.stderr)
        raise SystemExit(2)


def _build_parser(
    config_class: type[Any],
    tasks: Mapping[str, Any],
    presets: Mapping[str, Preset],
    prog: str,
    description: str,
) -> argparse.ArgumentParser:
    width = max(map(len, presets))
    claims = "\n".join(
        textwrap.fill(f"{name:<{width}}  {preset.claim}", 100, initial_indent="  ", subsequent_indent=" " * (width + 4))
        for name, preset in presets.items()
    )
    parser = Parser(
        prog=prog,
        description=description,
        epilog=f"presets:\n{claims}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--preset", default=DEFAULT_PRESET, help=f"{', '.join(presets)} (default {DEFAULT_PRESET})")
    parser.add_argument("--run", type=Path, metavar="FOLDER", help="run folder (default by task, preset and seed)")
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="FIELD=VALUE",
        help="the same as --field value",
    )
    words = "print every field with its value and where that comes from, and do nothing else"
    parser.add_argument("--print-config", action="store_true", help=words)
    group = parser.add_argument_group("fields")
    types_of = typing.get_type_hints(config_class)
    for item in dataclasses.fields(config_class):
        text = ",".join(map(str, item.default)) if isinstance(item.default, tuple) else item.default
        choices = tasks if item.name == "task" else item.metadata.get("choices")
        allowed = "one of " + ", ".join(map(str, choices)) if choices else _bounds_text(item)
        default = next(iter(tasks)) if item.name == "task" else "none" if text is None else text
        note = f"(default {default}{', ' + allowed if allowed else ''})"
        help_text = f"{item.metadata.get('help', '')} {note}".strip().replace("%", "%%")
        flag, target = "--" + item.name.replace("_", "-"), f"field:{item.name}"
        if types_of[item.name] is bool:
            action = argparse.BooleanOptionalAction
            group.add_argument(flag, dest=target, action=action, default=argparse.SUPPRESS, help=help_text)
        else:
            group.add_argument(flag, dest=target, metavar="VALUE", default=argparse.SUPPRESS, help=help_text)
    return parser
