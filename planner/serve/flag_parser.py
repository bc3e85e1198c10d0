"""vLLM's argument parser rebuilt from the flag table of a release: same spellings, abbreviations and sentences."""

from __future__ import annotations

import argparse
import functools
import json
import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from msgspec import Struct

from planner.errors import InputError
from planner.releases.flags import Flag, flags_for, removed_flag
from planner.units import parse_human_int
from planner.values import Rejection, reject

MODEL_TAG = "model_tag"


class GivenFlag(Struct, frozen=True):
    """One option of a command line: its texts as written and its value as vLLM reads it. A switch has no texts."""

    flag: Flag
    texts: tuple[str, ...]
    value: Any

    def argv(self) -> list[str]:
        """The option spelt out in full."""
        if self.flag.arity in ("switch", "bool"):
            return [self.flag.name if self.value else self.flag.negatives[0]]
        if self.flag.arity == "append":
            return [word for text in self.texts for word in (self.flag.name, text)]
        if len(self.texts) == 1 and self.texts[0].startswith("-"):
            return [f"{self.flag.name}={self.texts[0]}"]
        return [self.flag.name, *self.texts]


class ParsedFlags(Struct, frozen=True):
    """`problems`: what vLLM's parser would refuse, the first being the one it would print."""

    model: str | None
    given: tuple[GivenFlag, ...]
    problems: tuple[Rejection, ...]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise reject("flag", message)


def parse_flags(arguments: Sequence[str], vllm_version: str) -> ParsedFlags:
    """The words after `vllm serve`, read as the release reads them.

    Raises Rejected where its parser stops at once (a missing value, an ambiguous abbreviation, a dotted key without
    one), InputError for what is no version. Source: vLLM 0.26.0 utils/argparse_utils.py:253 parse_args,
    engine/arg_utils.py:288 _compute_kwargs.
    """
    flags = flags_for(vllm_version)
    namespace, rest = _parser_for(vllm_version).parse_known_args(_merged(_dashed(_model_first(list(arguments)))))
    found = vars(namespace)
    by_dest = {flag.dest: flag for flag in flags}
    given: list[GivenFlag] = []
    problems: list[Rejection] = []
    for dest, raw in found.items():
        if dest == MODEL_TAG:
            continue
        flag = by_dest[dest]
        texts = () if isinstance(raw, bool) else tuple(raw) if isinstance(raw, list) else (raw,)
        try:
            values = [_value(flag, text) for text in texts]
        except argparse.ArgumentTypeError as error:
            problems.append(_refused(flag, str(error), texts))
            continue
        value = raw if isinstance(raw, bool) else values if flag.arity in ("list", "append") else values[0]
        given.append(GivenFlag(flag, texts, value))
    if rest:
        problems.append(_unrecognized(rest))
    return ParsedFlags(found.get(MODEL_TAG), tuple(given), tuple(problems))


@functools.lru_cache(maxsize=8)
def _parser_for(vllm_version: str) -> _Parser:
    parser = _Parser(prog="vllm serve", add_help=False, argument_default=argparse.SUPPRESS)
    parser.add_argument(MODEL_TAG, nargs="?")
    for flag in flags_for(vllm_version):
        _add(parser, flag)
    return parser


def _add(parser: argparse.ArgumentParser, flag: Flag) -> None:
    match flag.arity:
        case "switch":
            parser.add_argument(*flag.options, dest=flag.dest, action="store_true")
        case "bool":
            parser.add_argument(*flag.options, *flag.negatives, dest=flag.dest, action=_OnOff, negatives=flag.negatives)
        case "list":
            parser.add_argument(*flag.options, dest=flag.dest, nargs="+")
        case "optional":
            parser.add_argument(*flag.options, dest=flag.dest, nargs="?", const=True)
        case "append":
            parser.add_argument(*flag.options, dest=flag.dest, action="append")
        case "value":
            parser.add_argument(*flag.options, dest=flag.dest)


class _OnOff(argparse.Action):
    def __init__(
        self, option_strings: Sequence[str], dest: str, negatives: tuple[str, ...], default: Any = None
    ) -> None:
        super().__init__(option_strings, dest, nargs=0, default=default)
        self._negatives = negatives

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, option_string not in self._negatives)


def _model_first(arguments: list[str]) -> list[str]:
    """`--model M` becomes the positional argument, as `vllm serve` does."""
    for index, word in enumerate(arguments):
        if word == "--model" and index + 1 < len(arguments):
            return [arguments[index + 1], *arguments[:index], *arguments[index + 2 :]]
        if word.startswith("--model="):
            return [word.removeprefix("--model="), *arguments[:index], *arguments[index + 1 :]]
    return arguments


def _dashed(arguments: list[str]) -> list[str]:
    """Underscores of option names become dashes (up to the first dot), -O3 and -O 3 the optimization level."""
    found: list[str] = []
    for index, word in enumerate(arguments):
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            head, dot, tail = name.partition(".")
            found.append(head.replace("_", "-") + dot + tail + equals + value)
        elif word.startswith("-O") and word != "-O":
            found += ["--optimization-level", word[3:] if word[2] == "=" else word[2:]]
        elif word == "-O" and arguments[index + 1 : index + 2] and arguments[index + 1] in ("0", "1", "2", "3"):
            found.append("--optimization-level")
        else:
            found.append(word)
    return found


def _merged(arguments: list[str]) -> list[str]:
    """`--flag.key value` and `--flag.key+ a,b` of one flag become one JSON value at the end of the line."""
    plain: list[str] = []
    objects: dict[str, dict[str, Any]] = {}
    words = iter(arguments)
    for word in words:
        name, equals, text = word.partition("=")
        if not word.startswith("-") or "." not in name or not re.match(r"--?[A-Za-z]", name):
            plain.append(word)
            continue
        if not equals:
            following = next(words, None)
            if following is None:
                raise reject("flag", f"argument {name}: expected one argument")
            text = following
        if name.endswith("+"):
            name, text = name[:-1], json.dumps(text.split(","))
        flag, *keys = name.split(".")
        target = objects.setdefault(flag, {})
        for key in keys[:-1]:
            inner = target.get(key)
            target[key] = target = inner if isinstance(inner, dict) else {}
        value, before = _json_or_text(text), target.get(keys[-1])
        if isinstance(value, list) and isinstance(before, list):
            value = before + value
        target[keys[-1]] = value
    return [*plain, *(word for flag, value in objects.items() for word in (flag, json.dumps(value)))]


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return _human_int(text)
    except (ValueError, argparse.ArgumentTypeError):
        return text


def _value(flag: Flag, text: str) -> Any:
    """One text as the flag's kind reads it. Raises ArgumentTypeError with argparse's words."""
    kind, optional = flag.kind.removesuffix("?"), flag.kind.endswith("?")
    value = None if optional and text in ("", "None") else _converted(kind, text, optional)
    if flag.choices and value not in flag.choices:
        choices = ", ".join(map(repr, flag.choices))
        raise argparse.ArgumentTypeError(f"invalid choice: {value!r} (choose from {choices})")
    return value


def _converted(kind: str, text: str, optional: bool) -> Any:
    reader, name = _READERS[kind]
    try:
        return reader(text)
    except (ValueError, RecursionError):
        if kind.startswith("json"):
            message = f"Value {text} cannot be converted to <function loads>."
        elif optional and kind in ("int", "float"):
            message = f"Value {text} cannot be converted to <class '{kind}'>."
        else:
            message = f"invalid {name} value: {text!r}"
        raise argparse.ArgumentTypeError(message) from None


def _human_int(text: str) -> int:
    """As vLLM 0.26.0 utils/argparse_utils.py:36 human_readable_int: a suffix, else what int() takes."""
    text = text.strip()
    if re.fullmatch(r"\d+(\.\d+)?[kKmMgGtT]", text):
        try:
            return parse_human_int(text)
        except InputError:
            number, suffix = text[:-1], text[-1]
            raise argparse.ArgumentTypeError(
                f"Decimals are not allowed with binary suffixes like {suffix}. Did you mean to use "
                f"{number}{suffix.lower()} instead?"
            ) from None
    return int(text)


def _human_int_or_auto(text: str) -> int:
    return -1 if text.strip().lower() in ("-1", "auto") else _human_int(text)


def _json_or_str(text: str) -> Any:
    return json.loads(text) if re.match(r"(?s)^\s*{.*}\s*$", text) else text


def _json_object(text: str) -> Any:
    return json.loads(_plain_numbers(text))


def _plain_numbers(text: str) -> str:
    """`80m` outside of strings becomes 80000000. Source: vLLM 0.26.0 engine/arg_utils.py:265."""
    parts = re.split(r'("(?:[^"\\]|\\.)*")', text)
    parts[::2] = [
        re.sub(r"\b\d+(?:\.\d+)?[kKmMgGtT]\b", lambda number: str(_human_int(number[0])), part) for part in parts[::2]
    ]
    return "".join(parts)


_READERS: dict[str, tuple[Callable[[str], Any], str]] = {
    "int": (int, "int"),
    "float": (float, "float"),
    "str": (str, "str"),
    "json": (_json_object, "loads"),
    "json_or_str": (_json_or_str, "union_dict_and_str"),
    "human_int": (_human_int, "human_readable_int"),
    "human_int_or_auto": (_human_int_or_auto, "human_readable_int_or_auto"),
    "lower_snake": (lambda text: text.lower().replace("-", "_"), "str"),
}


def _refused(flag: Flag, message: str, texts: tuple[str, ...]) -> Rejection:
    """argparse's sentence about one option; the JSON to write where the old `image=5` form was given."""
    pairs = [pair.partition("=") for pair in texts[0].split(",")] if texts else []
    fix: tuple[str, ...] = ()
    if flag.kind.startswith("json") and pairs and all(equals and key.isidentifier() for key, equals, _ in pairs):
        value = json.dumps({key: int(count) if count.isdigit() else count for key, _, count in pairs})
        fix = (f"{flag.name} '{value}'",)
    name = "/".join(flag.options)
    return Rejection(bottleneck="flag", message=f"argument {name}: {message}", fix=fix)


def _unrecognized(rest: list[str]) -> Rejection:
    fixes: list[str] = []
    for word in rest:
        removed = removed_flag(word) if word.startswith("-") else None
        if removed is not None:
            fixes += [f"{word.partition('=')[0]}: {step}" for step in removed.fix]
    return Rejection(bottleneck="flag", message=f"unrecognized arguments: {' '.join(rest)}", fix=tuple(fixes))
