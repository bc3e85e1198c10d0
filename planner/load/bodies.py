"""A job as the request that OpenAI-compatible servers read."""

from __future__ import annotations

import json
import random
from typing import Any

from planner.load.media import image_url, video_url
from planner.load.mix import Job
from planner.load.target import Served

_TOKEN_IDS = range(32, 128)
_WORDS = (
    "the", "of", "and", "to", "in", "is", "that", "for", "it", "as", "was", "with", "be", "by", "on", "not", "he",
    "this", "are", "or", "his", "from", "at", "which", "but", "have", "an", "had", "they", "you", "were", "one",
)  # fmt: skip


def request_of(job: Job, served: Served, *, text_as_chat: bool = False) -> tuple[str, bytes]:
    """Path and JSON body. Text goes as token ids, so that its length is exact and no two prompts share a prefix.

    Beside media, and with `text_as_chat`, it is words: about one token each. `ignore_eos` is vLLM's own.
    """
    chance = random.Random(job.seed)
    body: dict[str, Any] = {
        "model": served.model, "max_tokens": job.output_tokens, "temperature": 0, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    if served.is_vllm:
        body["ignore_eos"] = True
    if job.kind == "text" and not text_as_chat:
        body["prompt"] = chance.choices(_TOKEN_IDS, k=job.text_tokens)
        return "/v1/completions", json.dumps(body).encode()
    body["messages"] = [{"role": "user", "content": [*_media(job, chance), _text(job, chance)]}]
    return "/v1/chat/completions", json.dumps(body).encode()


def _text(job: Job, chance: random.Random) -> dict[str, Any]:
    return {"type": "text", "text": " ".join(chance.choices(_WORDS, k=job.text_tokens))}


def _media(job: Job, chance: random.Random) -> list[dict[str, Any]]:
    if job.kind == "image":
        urls = [image_url(job.size, chance) for _ in range(job.pieces)]
        return [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    if job.kind == "video":
        return [{"type": "video_url", "video_url": {"url": video_url(job.size, job.pieces, chance)}}]
    return []
