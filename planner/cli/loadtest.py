"""`vplan loadtest`: mixed requests against a running engine, and its memory beside the plan's."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer
from msgspec import structs

from planner.cli.output import Output, check_format, write
from planner.cli.shared_flags import Cards, PlanBeside, Rank
from planner.errors import InputError, PlannerError

_LONGEST_S = 86_400.0
_MOST_AT_ONCE = 4096
_AT_ONCE = 8
_AT_ONCE_WITH_RATE = 512


def loadtest(
    url: Annotated[
        str, typer.Option("--url", help="The server. Other hosts than this one: spelt out, with --yes.")
    ] = "http://127.0.0.1:8000",
    yes: Annotated[bool, typer.Option("--yes", help="Yes, the other host in --url may be put under load.")] = False,
    model: Annotated[
        str | None, typer.Option("--model", help="Which of the server's models.", show_default=False)
    ] = None,
    api_key_env: Annotated[
        str | None,
        typer.Option("--api-key-env", help="Environment variable that holds the API key.", show_default=False),
    ] = None,
    mix: Annotated[str, typer.Option("--mix", help="Kinds by weight: text=6,image=3,video=1, or one kind.")] = "text",
    text_tokens: Annotated[
        str,
        typer.Option("--text-tokens", help="Prompt lengths: N, LOW-HIGH, normal:MEAN:SPREAD, lognormal:MEDIAN:SIGMA."),
    ] = "512",
    output_tokens: Annotated[str, typer.Option("--output-tokens", help="Output lengths, in the same forms.")] = "128",
    images: Annotated[int, typer.Option("--images", help="Images in an image request.")] = 1,
    image_size: Annotated[
        list[str] | None,
        typer.Option("--image-size", help="WIDTHxHEIGHT (1024x1024); repeatable, taken evenly.", show_default=False),
    ] = None,
    video_frames: Annotated[int, typer.Option("--video-frames", help="Frames of a video.")] = 16,
    video_size: Annotated[
        list[str] | None,
        typer.Option("--video-size", help="WIDTHxHEIGHT (448x448); repeatable, taken evenly.", show_default=False),
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option("--concurrency", help="Requests at once (8); with --rate at most so many.", show_default=False),
    ] = None,
    rate: Annotated[
        float | None, typer.Option("--rate", help="Requests a second, at random moments.", show_default=False)
    ] = None,
    duration: Annotated[float, typer.Option("--duration", help="Seconds in which requests are sent.")] = 60.0,
    requests: Annotated[
        int | None, typer.Option("--requests", help="Stop after so many requests.", show_default=False)
    ] = None,
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds that one answer may take.")] = 120.0,
    grace: Annotated[float, typer.Option("--grace", help="Seconds for the last answers to come.")] = 30.0,
    chat: Annotated[bool, typer.Option("--chat", help="Text as chat messages too, not as token ids.")] = False,
    seed: Annotated[int, typer.Option("--seed", help="The same seed sends the same requests.")] = 0,
    plan: PlanBeside = None,
    rank: Rank = 1,
    cards: Cards = None,
    interval: Annotated[float, typer.Option("--interval", help="Seconds between the monitor's looks.")] = 0.5,
    csv: Annotated[
        Path, typer.Option("--csv", help="A new file, a row a request. NAME.monitor.csv, .json, .png go beside it.")
    ] = Path("loadtest.csv"),
    draw: Annotated[
        Path | None,
        typer.Option(
            "--draw",
            help="Only draw an earlier test's CSV; with --plan, --cards hold it against them.",
            show_default=False,
        ),
    ] = None,
    format: Annotated[str, typer.Option("--format", help="text or json.")] = "text",  # noqa: A002
    output: Output = None,
) -> None:
    """Load an OpenAI-compatible server with text, images and videos made here; measure answers, memory and queue.

    Exit code 0: all answered, memory within the plan. 1: some failed, or memory above the plan. 4: none was answered.
    Ctrl-C ends the test early (130); what was measured is written.

    Example: vplan loadtest --mix text=6,image=3,video=1 --concurrency 16 --duration 60 --plan plan.json --csv load.csv
    """
    from planner.cli.loadtest_output import loadtest_text
    from planner.load.drive import Pace
    from planner.load.mix import Mix, parse_lengths, parse_sizes, parse_weights
    from planner.load.run import LoadTest, files_of, refuse_existing, run_test
    from planner.load.run import draw as draw_test
    from planner.load.summary import exit_code
    from planner.load.target import ask, parse_target
    from planner.monitor.cards import parse_cards
    from planner.monitor.planned import read_plan

    check_format(format, ("text", "json"))
    if draw is not None:
        held = None if plan is None else read_plan(plan, rank)
        write(f"wrote {draw_test(draw, held, None if cards is None else parse_cards(cards))}", output)
        return
    _check_numbers(images, video_frames, concurrency, rate, duration, requests, timeout, grace, interval)
    sent = Mix(
        weights=parse_weights(mix),
        text_tokens=parse_lengths("--text-tokens", text_tokens),
        output_tokens=parse_lengths("--output-tokens", output_tokens),
        images=images,
        image_sizes=parse_sizes("--image-size", image_size or ["1024x1024"], images),
        video_frames=video_frames,
        video_sizes=parse_sizes("--video-size", video_size or ["448x448"], video_frames),
    )
    pace = Pace(
        concurrency=concurrency or (_AT_ONCE if rate is None else _AT_ONCE_WITH_RATE),
        duration_s=duration,
        rate_per_s=rate,
        requests=requests,
        timeout_s=timeout,
        grace_s=grace,
    )
    target = parse_target(url, yes, _key(api_key_env))
    planned = None if plan is None else read_plan(plan, rank)
    files = files_of(csv)
    refuse_existing(files)
    served = ask(target, model, min(timeout, 30.0))
    setup = {
        "url": target.base, "model": served.model, "mix": mix, "text_tokens": text_tokens,
        "output_tokens": output_tokens, "images": images, "image_sizes": sent.image_sizes,
        "video_frames": video_frames, "video_sizes": sent.video_sizes, "concurrency": pace.concurrency,
        "rate_per_s": rate, "duration_s": duration, "timeout_s": timeout, "seed": seed,
        "text_as": "words" if chat else "token ids",
    }  # fmt: skip
    test = LoadTest(target, served, files, setup, planned, interval, seed, chat, parse_cards(cards))
    document, interrupted = run_test(test, structs.replace(sent, longest=served.max_model_len), pace)
    drawn = f"not drawn; vplan loadtest --draw {csv} does it" if interrupted else _drawn(csv)
    write(json.dumps(document, indent=1) if format == "json" else loadtest_text(document, files, drawn), output)
    raise typer.Exit(130 if interrupted else exit_code(document))


def _drawn(csv: Path) -> str:
    """Draw where that can be done; what to say of the picture."""
    from planner.load.run import draw

    try:
        return str(draw(csv))
    except PlannerError as error:
        return f"no picture ({error}); vplan loadtest --draw {csv} draws it later"


def _key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key or not key.isascii() or not key.isprintable():
        raise InputError(f"--api-key-env: the environment variable {variable} holds no key")
    return key


def _check_numbers(
    images: int, frames: int, concurrency: int | None, rate: float | None, duration: float, requests: int | None,
    timeout: float, grace: float, interval: float,
) -> None:  # fmt: skip
    bounds: tuple[tuple[str, float | None, float, float], ...] = (
        ("--images", images, 1, 64),
        ("--video-frames", frames, 1, 256),
        ("--concurrency", concurrency, 1, _MOST_AT_ONCE),
        ("--rate", rate, 0.001, 10_000),
        ("--duration", duration, 0.1, _LONGEST_S),
        ("--requests", requests, 1, 10_000_000),
        ("--timeout", timeout, 0.1, _LONGEST_S),
        ("--grace", grace, 0, _LONGEST_S),
        ("--interval", interval, 0.1, 3600),
    )
    for flag, value, low, high in bounds:
        if value is not None and not low <= value <= high:
            raise InputError(f"{flag}: from {low:g} to {high:,.0f}, not {value:g}")
