"""Command line over YAML over default: flat flags over the sections of a YAML, all checked against dataclasses.

A setting's name, type, default and explanation stand once, in a frozen dataclass, by ``option``.
Everything from a YAML or a flag passes ``typed``, the one check of types.
"""

import argparse
import json
import math
import os
import re
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from itertools import zip_longest
from pathlib import Path
from types import MappingProxyType, UnionType
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from runtime.errors import UserError
from runtime.files import did_you_mean, located, write_text

JSON = ".json"
OPTIONS = "options"  # heading of a program's own, below which argparse has --help
Settings = TypeVar("Settings")
Words = Sequence[str]  # of a command line, without the program's name
Kinds = type | tuple[type, ...]  # of one section: its keys are those of all
# Each type as --help shows it, and what to type for a value of it.
_VALUES = {
    int: ("INT", "a whole number"),
    float: ("FLOAT", "a number"),
    bool: ("BOOL", "true or false"),
    str: ("TEXT", "text"),
    tuple: ("LIST", "a list in brackets, as in '[first, second]'"),
    dict: ("MAPPING", "a mapping, as in '{50: 0.3}'"),
}


def option(default: Any, explanation: str) -> Any:
    """A setting in a dataclass: its default, or the class that makes it, and what ``--help`` says of it."""
    kind = {"default_factory": default} if isinstance(default, type) else {"default": default}
    return field(**kind, metadata={"help": explanation})


@dataclass(frozen=True)
class Option:
    """A flag: its name without dashes (dotted within a group of settings), type, default and explanation."""

    name: str
    hint: Any
    default: Any
    help: str


Groups = Mapping[str, Sequence[Option]]  # by heading
Owners = Mapping[str, str]  # whose a setting is that this program has not, by name


def parse_config(
    argv: Words,
    prog: str,
    description: str,
    sections: Mapping[str, Kinds],
    others: Words = (),
    owners: Owners = MappingProxyType({}),
) -> tuple[dict[str, Any], str]:
    """Settings of a command line over its ``--config`` YAML over the defaults, and the configuration's name.

    ``sections`` has the dataclass, or dataclasses, of each section of the YAML; an instance of each comes back.
    ``others`` are sections for other programs, ``owners`` tells whose other settings are. An unknown key or flag, or a
    value of the wrong type, is a UserError.
    """
    several = {section: kinds if isinstance(kinds, tuple) else (kinds,) for section, kinds in sections.items()}
    parser = _Parser(prog, description, owners)
    parser.add_argument("--config", metavar="YAML", help="configuration file; flags override it")
    parser.add_argument("--print_config", action="store_true", help="print the resulting configuration and stop")
    for section, kinds in several.items():
        parser.add_options(section, [option for kind in kinds for option in options_of(kind)])
    given, found = parser.parse(argv)
    path = found.config
    content = {} if path is None else read_yaml(located(path))
    check_keys(content, (*sections, *others), str(path))
    section_of = {f.name: section for section, kinds in several.items() for kind in kinds for f in fields(kind)}
    settings = {}
    for section, kinds in several.items():
        where = f"{path}: {section}"
        values = _mapping({} if content.get(section) is None else content[section], where)
        kind_of = {f.name: kind for kind in kinds for f in fields(kind)}
        elsewhere = {name: f"section {other}" for name, other in section_of.items() if name not in kind_of}
        check_keys(values, kind_of, where, {**elsewhere, **owners})
        made = [_make(kind, {k: v for k, v in values.items() if kind_of[k] is kind}, given, where) for kind in kinds]
        settings[section] = tuple(made) if isinstance(sections[section], tuple) else made[0]
    if found.print_config:
        print(to_yaml(settings), end="")
        sys.exit(0)
    return settings, "default" if path is None else Path(path).stem


def parse_flags(argv: Words, prog: str, description: str, kind: type[Settings], positional: Words = ()) -> Settings:
    """Settings of a command line without a YAML; words that are no flags are the ``positional`` settings in order."""
    return parse_open_flags(argv, prog, description, kind, {}, positional)[0]


def parse_open_flags(
    argv: Words, prog: str, description: str, kind: type[Settings], more: Groups, positional: Words = ()
) -> tuple[Settings, dict[str, Any]]:
    """As ``parse_flags``, with options that the dataclass lacks, by heading: those that were given, by name."""
    parser = _Parser(prog, description)
    for heading, options in {OPTIONS: options_of(kind), **more}.items():
        parser.add_options(heading, options)
    given, _ = parser.parse(argv, positional)
    own = {f.name for f in fields(kind)}
    others = {name: value for name, value in given.items() if name.split(".")[0] not in own}
    return _make(kind, {}, given, "the command line"), others


def as_flags(settings: Mapping[str, Any]) -> list[str]:
    """The words of a command line that ``parse_flags`` reads these settings from: text, numbers, lists and the like."""
    words = []
    for name, value in settings.items():
        text = value if isinstance(value, str) else json.dumps(value)
        # What begins with a dash would be taken for an option; numbers are told apart.
        joined = text.startswith("-") and isinstance(value, str)
        words += [f"--{name}={text}"] if joined else [f"--{name}", text]
    return words


def given_text(argv: Words, name: str) -> str | None:
    """What a command line has for an option, before it is read as a whole; None if nothing."""
    found, flag = None, f"--{name}"
    for word, following in zip_longest(argv, argv[1:]):
        if word == flag or word.startswith(f"{flag}="):
            found = word.partition("=")[2] or following
    return found


def options_of(kind: type, prefix: str = "") -> list[Option]:
    """The flags of a dataclass; a nested one is an option itself, as a mapping, and so is each of its settings."""
    hints, options = get_type_hints(kind), []
    for f in fields(kind):
        name, hint = prefix + f.name, hints[f.name]
        default = f.default if f.default is not MISSING else f.default_factory()
        # Where a dataclass changes a default alone, the explanation is that of the dataclass that it extends.
        kept = (part.__dataclass_fields__.get(f.name) for part in kind.__mro__ if is_dataclass(part))
        explanation = next((old.metadata["help"] for old in kept if old and "help" in old.metadata), "")
        options.append(Option(name, hint, default, explanation))
        if is_dataclass(hint):
            options += options_of(hint, f"{name}.")
    return options


def to_yaml(settings: Mapping[str, Any]) -> str:
    """YAML of one dataclass instance, or several, a section, in the published schema."""
    from runtime import strict_yaml

    return strict_yaml.dump({section: plain(value) for section, value in settings.items()})


def plain(value: Any) -> dict[str, Any]:
    """A configuration dataclass, or several as one, as plain containers."""
    if isinstance(value, tuple):
        return {key: item for part in value for key, item in plain(part).items()}
    return {key: list(item) if isinstance(item, tuple) else item for key, item in asdict(value).items()}


def dataclass_from_dict(kind: type[Settings], values: Any, where: str) -> Settings:
    """A (nested) configuration dataclass from a plain mapping; ``where`` names the file or section in a UserError."""
    return _make(kind, _mapping(values, where), {}, where)


def typed(value: Any, hint: Any, name: str) -> Any:
    """A value as its type wants it, or a UserError: lists become tuples, and text of a number that number."""
    origin, inner, members = get_origin(hint) or hint, get_args(hint), _members(hint)
    if hint is Any or (origin is Literal and value in inner):
        return value
    if len(members) > 1:
        for member in members:
            with suppress(UserError):
                return typed(value, member, name)
    elif origin is tuple and isinstance(value, list | tuple):
        hints = (inner[0],) * len(value) if inner[-1] is Ellipsis else inner
        if len(value) == len(hints):
            return tuple(typed(item, hint, name) for item, hint in zip(value, hints, strict=True))
    elif origin is dict and isinstance(value, dict):
        return {typed(key, inner[0], name): typed(item, inner[1], name) for key, item in value.items()}
    elif origin is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):
            if math.isfinite(number := float(value)):
                return number
    elif isinstance(origin, type) and type(value) is origin:
        return os.path.expanduser(value) if origin is str else value  # noqa: PTH111 (a shell leaves --flag=~/x alone)
    choices = [str(choice) for member in members for choice in get_args(member) if get_origin(member) is Literal]
    near = [f"; did you mean {choice}?" for choice in get_close_matches(str(value), choices, n=1)]
    raise UserError("".join([f"{name} is {value}; it must be {_described(hint)[1]}", *near]))


def from_text(text: str, option: Option) -> Any:
    """What was typed, by the option's type, or a UserError: lists and mappings are read as YAML, other text stays."""
    kinds, value = _members(option.hint), text
    if text == "null" and type(None) in kinds:
        return None
    if str in kinds:
        return typed(text, option.hint, option.name)
    if text[:1] in ("[", "{"):
        from runtime import strict_yaml

        with suppress(ValueError):
            value = strict_yaml.load(text)
    if is_dataclass(option.hint):
        return _group(option.hint, value, option.name)
    if bool in kinds and text.lower() in ("true", "false"):
        value = text.lower() == "true"
    if int in kinds and re.fullmatch(r"\s*[-+]?\d{1,100}\s*", text):
        value = int(text)
    return typed(value, option.hint, option.name)


def check_keys(
    values: Iterable[str], known: Collection[str], where: str, owners: Owners = MappingProxyType({})
) -> None:
    """Refuse keys that are not known, telling whose they are, or the nearest one that is known."""
    for key in values:
        if key not in known:
            if key in owners:
                raise UserError(f"{where} has {key}, which belongs to {owners[key]}; move it or leave it out")
            near = get_close_matches(str(key), known, n=1, cutoff=0.5)
            suggestion = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(known)}"
            raise UserError(f"unknown key {key} in {where}{suggestion}")


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping of a YAML file, or of a JSON file, which is YAML but for some numbers."""
    from runtime import strict_yaml

    if path.is_dir():
        raise UserError(f"{path} is a folder; name the YAML file in it")
    if not path.is_file():
        raise UserError(f"no such file: {path}{did_you_mean(path)}")
    try:
        content = (json.loads if path.suffix == JSON else strict_yaml.load)(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        kind = "JSON" if path.suffix == JSON else "YAML"
        raise UserError(f"{path} is no valid {kind}: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no settings")
    return content


def write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    """Write a YAML file, or a JSON file by its suffix, whole or not at all."""
    from runtime import strict_yaml

    write_text(path, json.dumps(content, indent=2) + "\n" if path.suffix == JSON else strict_yaml.dump(content))


class _Parser(argparse.ArgumentParser):
    """argparse as we use it: values as text, mistakes as ``UserError``."""

    def __init__(self, prog: str, description: str, owners: Owners = MappingProxyType({})) -> None:
        formatter = argparse.RawDescriptionHelpFormatter
        usage = f"{prog} [--option VALUE ...]"
        super().__init__(usage=usage, description=description, formatter_class=formatter, allow_abbrev=False)
        self.options: dict[str, Option] = {}
        self._owners = owners
        self._negative_number_matcher = re.compile(r"-\.?\d")  # argparse does not know -1e-3

    def error(self, message: str) -> NoReturn:
        raise UserError(message.removeprefix("argument "))

    def add_options(self, heading: str, options: Iterable[Option]) -> None:
        group = self if heading == OPTIONS else self.add_argument_group(heading)
        for option in options:
            told = is_dataclass(option.hint) or option.default is None  # of None the explanation says what it means
            text = option.help if told else f"{option.help} (default: {_shown(option.default)})"
            group.add_argument(f"--{option.name}", metavar=_described(option.hint)[0], help=text.replace("%", "%%"))
            self.options[option.name] = option

    def parse(self, argv: Words, positional: Words = ()) -> tuple[dict[str, Any], argparse.Namespace]:
        """Typed values of the options that were given, groups of settings first; and the rest of what was found."""
        found, left = self.parse_known_args(self._completed(argv, words=bool(positional)))
        for word in left:
            free = next((name for name in positional if getattr(found, name) is None), None)
            if word.startswith("-") or free is None:
                raise UserError(self._answer(word))
            setattr(found, free, word)
        given = {name: text for name in self.options if (text := getattr(found, name)) is not None}
        return {name: from_text(text, self.options[name]) for name, text in given.items()}, found

    def _answer(self, word: str) -> str:
        """What to say of a word that is no option, and no value of one."""
        unknown = word.split("=")[0]
        owner = self._owners.get(unknown.removeprefix("--"))
        near = get_close_matches(unknown, self._option_string_actions, n=1)
        if word.startswith("-") and owner:
            return f"{unknown} belongs to {owner}; leave it out, or take a configuration that has it"
        if near or word.startswith("-"):
            return f"unknown option {unknown}; " + (f"did you mean {near[0]}?" if near else "see --help")
        wanted = "--config" if word.endswith((".yaml", ".yml")) else "--checkpoint"
        if wanted in self._option_string_actions and Path(word).exists():
            return f"{word} belongs to no option; did you mean {wanted} {word}?"
        return f"{word} belongs to no option; put a value that has spaces in quotes, or see --help"

    def _completed(self, argv: Words, words: bool) -> list[str]:
        """``--use_cache`` alone means ``--use_cache=true``; where ``words`` may follow, before one of them too."""
        switches = {f"--{name}" for name, option in self.options.items() if option.hint is bool}
        completed = []
        for word, after in zip_longest(argv, argv[1:], fillvalue="-"):
            alone = after.startswith("-") or (words and after.lower() not in ("true", "false"))
            completed.append(f"{word}=true" if word in switches and alone else word)
        return completed


def _make(
    kind: type[Settings], values: Mapping[str, Any], given: Mapping[str, Any], where: str, prefix: str = ""
) -> Settings:
    """A dataclass of a YAML's values and the flags that were given, which come first."""
    hints, settings = get_type_hints(kind), {}
    check_keys(values, hints, where)
    for f in fields(kind):
        name, hint, place = prefix + f.name, hints[f.name], f"{where}: {f.name}"
        if is_dataclass(hint):
            nested = _group(hint, values.get(f.name, {}), place) | given.get(name, {})
            settings[f.name] = _make(hint, nested, given, place, f"{name}.")
        elif name in given:
            settings[f.name] = given[name]
        elif f.name in values:
            settings[f.name] = typed(values[f.name], hint, place)
    return kind(**settings)


def _group(kind: type, values: Any, where: str) -> dict[str, Any]:
    """The settings of a nested dataclass; text alone is what its ``of_text`` makes of it, if it has one."""
    return kind.of_text(values) if isinstance(values, str) and hasattr(kind, "of_text") else _mapping(values, where)


def _mapping(values: Any, where: str) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        raise UserError(f"{where} holds {values!r}, not settings; put name: value pairs there")
    return dict(values)


def _members(hint: Any) -> tuple[Any, ...]:
    """The types of a union; any other type alone."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _described(hint: Any) -> tuple[str, str]:
    """A type as ``--help`` shows it, and what to type for a value of it."""
    members = [member for member in _members(hint) if member is not type(None)] or [hint]
    if len(members) > 1:
        shown, wanted = zip(*map(_described, members), strict=True)
        with_list = "a number, or a list as in '[1, 2, 3]'"
        return "|".join(shown), with_list if "LIST" in shown else " or ".join(wanted)
    kind, choices = members[0], [str(choice) for choice in get_args(members[0])]
    if get_origin(kind) is Literal:
        return "{" + ",".join(choices) + "}", "one of " + ", ".join(choices)
    kind = dict if is_dataclass(kind) else get_origin(kind) or kind
    return _VALUES.get(kind, (kind.__name__.upper(), kind.__name__))


def _shown(default: Any) -> str:
    """A default as a YAML has it."""
    if isinstance(default, bool) or default is None:
        return json.dumps(default)
    return str(list(default) if isinstance(default, tuple) else default)
