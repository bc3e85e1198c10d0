"""Sending the load: so many requests at a time, or so many a second, until the time is over."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from msgspec import Struct

from planner.load.answer import Answer, Broken, error_words
from planner.load.bodies import request_of
from planner.load.mix import Job
from planner.load.rows import Outcome
from planner.load.target import Served, Target

if TYPE_CHECKING:
    import httpx

_CONNECT_S = 10.0
_PAUSE_S = (0.1, 5.0)
_MAX_ERROR_BYTES = 16 << 10


class Pace(Struct, frozen=True):
    """How hard and how long.

    Without `rate_per_s`, `concurrency` requests are always under way. With it, requests leave at random moments
    (Poisson) and those that would be more than `concurrency` at once are left out. `grace_s`: how long answers may
    still come after the end.
    """

    concurrency: int
    duration_s: float
    rate_per_s: float | None = None
    requests: int | None = None
    timeout_s: float = 120.0
    grace_s: float = 30.0


class Driver:
    """One test. `left_out`: requests that a rate asked for and concurrency forbade."""

    def __init__(
        self,
        target: Target,
        served: Served,
        pace: Pace,
        jobs: Iterator[Job],
        *,
        seed: int = 0,
        text_as_chat: bool = False,
        tell: Callable[[Outcome], None],
    ) -> None:
        self.left_out = 0
        self._target, self._served, self._pace, self._jobs = target, served, pace, jobs
        self._chance = random.Random(seed)
        self._text_as_chat = text_as_chat
        self._tell = tell
        self._end = 0.0
        self._sent = 0

    def run(self) -> bool:
        """Until the time is over; True where it was interrupted (SIGINT, SIGTERM). Every request sent is told."""
        try:
            asyncio.run(self._main())
        except (KeyboardInterrupt, asyncio.CancelledError):
            return True
        return False

    async def _main(self) -> None:
        import signal

        import httpx

        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        with contextlib.suppress(NotImplementedError, ValueError, RuntimeError):
            loop.add_signal_handler(signal.SIGTERM, task.cancel)
        count = self._pace.concurrency
        limits = httpx.Limits(max_connections=count, max_keepalive_connections=count)
        timeout = httpx.Timeout(self._pace.timeout_s, connect=min(_CONNECT_S, self._pace.timeout_s))
        async with httpx.AsyncClient(
            limits=limits, timeout=timeout, trust_env=False, headers=self._target.headers
        ) as client:
            self._end = time.monotonic() + self._pace.duration_s
            work = self._at_a_time(client) if self._pace.rate_per_s is None else self._a_second(client)
            try:
                async with asyncio.timeout(self._pace.duration_s + self._pace.grace_s):
                    await work
            except TimeoutError:
                return

    async def _at_a_time(self, client: httpx.AsyncClient) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(self._pace.concurrency):
                group.create_task(self._worker(client))

    async def _worker(self, client: httpx.AsyncClient) -> None:
        """Request after request; a growing pause after one that failed, so that a dead server is not hammered."""
        pause = _PAUSE_S[0]
        while self._more():
            status = await self._send(client, next(self._jobs))
            if status == "failed":
                await asyncio.sleep(min(pause, max(self._end - time.monotonic(), 0.0)))
            pause = min(pause * 2, _PAUSE_S[1]) if status == "failed" else _PAUSE_S[0]

    async def _a_second(self, client: httpx.AsyncClient) -> None:
        rate = self._pace.rate_per_s
        assert rate is not None
        under_way: set[asyncio.Task[str]] = set()
        due = time.monotonic()
        async with asyncio.TaskGroup() as group:
            while True:
                due += self._chance.expovariate(rate)
                await asyncio.sleep(max(min(due, self._end) - time.monotonic(), 0.0))
                if not self._more():
                    return
                job = next(self._jobs)
                if len(under_way) >= self._pace.concurrency:
                    self.left_out += 1
                    continue
                task = group.create_task(self._send(client, job))
                under_way.add(task)
                task.add_done_callback(under_way.discard)

    def _more(self) -> bool:
        """Whether one more request may leave; if so, it is counted."""
        enough = self._pace.requests is not None and self._sent >= self._pace.requests
        if enough or time.monotonic() >= self._end:
            return False
        self._sent += 1
        return True

    async def _send(self, client: httpx.AsyncClient, job: Job) -> str:
        """One request from beginning to end, told whatever becomes of it. Its status."""
        path, body = await asyncio.to_thread(request_of, job, self._served, text_as_chat=self._text_as_chat)
        answer, sent_at, began = Answer(), time.time(), time.monotonic()
        status, problem = "cancelled", None
        try:
            async with asyncio.timeout(self._pace.timeout_s):
                await _exchange(client, self._target.base + path, body, answer, began)
            status = "ok"
        except TimeoutError:
            status, problem = "timeout", f"no whole answer in {self._pace.timeout_s:g} s"
        except Broken as error:
            status, problem = "failed", str(error)
        finally:
            outcome = Outcome(
                number=job.number, kind=job.kind, sent_at=sent_at, status=status, text_tokens=job.text_tokens,
                width=job.size[0] if job.pieces else 0, height=job.size[1] if job.pieces else 0, pieces=job.pieces,
                prompt_tokens=answer.prompt_tokens, completion_tokens=answer.completion_tokens, ttft_s=answer.first_s,
                itl_mean_s=answer.mean_gap_s, itl_max_s=answer.longest_gap_s, duration_s=time.monotonic() - began,
                problem=problem,
            )  # fmt: skip
            self._tell(outcome)
        return status


async def _exchange(client: httpx.AsyncClient, url: str, body: bytes, answer: Answer, began: float) -> None:
    """The answer to one POST. Broken for a refusal, an answer that is none, or one that breaks off."""
    import httpx

    try:
        async with client.stream("POST", url, content=body, headers={"Content-Type": "application/json"}) as response:
            if response.status_code != 200:
                raise Broken(error_words(response.status_code, await _beginning(response)))
            async for data in response.aiter_bytes():
                answer.feed(data, time.monotonic() - began)
    except httpx.TimeoutException:
        raise TimeoutError from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise Broken(f"{type(error).__name__} {error}".strip()[:200]) from None
    if not answer.done:
        raise Broken("the answer broke off" if answer.first_s is not None else "the answer holds no token")


async def _beginning(response: httpx.Response) -> bytes:
    body = b""
    async for data in response.aiter_bytes():
        body += data
        if len(body) > _MAX_ERROR_BYTES:
            break
    return body
