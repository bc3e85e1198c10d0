"""Measured requests, a CSV or JSON Lines file, as pairs of prompt and output tokens."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

from planner.errors import InputError
from planner.sources.json_file import read_text

MAX_FILE_BYTES = 256 << 20
MAX_REQUESTS = 1_000_000
MAX_TOKENS = 10_000_000

PROMPT_NAMES = (
    "prompt_tokens", "prompt_len", "prompt_length", "input_tokens", "input_len", "input_length", "num_prompt_tokens",
    "context_tokens", "contexttokens", "request_tokens",
)  # fmt: skip
OUTPUT_NAMES = (
    "output_tokens", "output_len", "output_length", "completion_tokens", "num_output_tokens", "generated_tokens",
    "generatedtokens", "response_tokens",
)  # fmt: skip
"""Names of the columns, case and spaces aside: vLLM's and OpenAI's, and those of published traces."""


def read_request_lengths(path: str) -> tuple[tuple[int, int], ...]:
    """(prompt tokens, output tokens) of each request. InputError names the file and the line of what cannot be read.

    A CSV has a header; a JSON Lines file an object a line, the counts in it or in its `usage`.
    """
    text = read_text(Path(path), limit_bytes=MAX_FILE_BYTES)
    rows = _json_rows(text, path) if text.lstrip().startswith("{") else _csv_rows(text, path)
    found: list[tuple[int, int]] = []
    for line, row in rows:
        if len(found) == MAX_REQUESTS:
            raise InputError(f"{path}: more than {MAX_REQUESTS:,} requests")
        found.append((_count(row, PROMPT_NAMES, path, line, 1), _count(row, OUTPUT_NAMES, path, line, 0)))
    if not found:
        raise InputError(f"{path}: no requests in it")
    return tuple(found)


def _csv_rows(text: str, path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.reader(StringIO(text))
    try:
        header = [_plain(name) for name in next(reader, [])]
        for names, what in ((PROMPT_NAMES, "prompt"), (OUTPUT_NAMES, "output")):
            if not set(names) & set(header):
                raise InputError(f"{path}: no column of {what} tokens (write {names[0]}); it has {', '.join(header)}")
        for row in reader:
            if row:
                yield reader.line_num, dict(zip(header, row, strict=False))
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: {error}") from None


def _json_rows(text: str, path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}, line {number}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {number}: expected a JSON object")
        usage = row.get("usage")
        yield (
            number,
            {_plain(str(key)): value for key, value in {**row, **(usage if isinstance(usage, dict) else {})}.items()},
        )


def _count(row: dict[str, Any], names: tuple[str, ...], path: str, line: int, least: int) -> int:
    for name in names:
        if name not in row:
            continue
        value = row[name]
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = -1.0
        if isinstance(value, bool) or number != int(max(min(number, 1e15), -1)) or not least <= number <= MAX_TOKENS:
            raise InputError(f"{path}, line {line}: {name} must be a whole number from {least} to {MAX_TOKENS:,}")
        return int(number)
    raise InputError(f"{path}, line {line}: no {names[0]}")


def _plain(name: str) -> str:
    return name.strip().casefold().replace(" ", "_")
