"""Write docs/choosing.md: the cards that guides name for these models, planned and priced.

    python scripts/generate_choosing_page.py

A test holds the page to it. Prose is kept here, beside the figures that it names.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from planner import api
from planner.engine.args import EngineArgs
from planner.report.selection import Row
from planner.report.selection_document import price_words
from planner.search.space import SearchOptions, Workload
from planner.units import GIB, format_gib

PAGE = Path(__file__).resolve().parent.parent / "docs" / "choosing.md"
LENGTH, PROMPT, ANSWER, CONCURRENCY = 8192, 1024, 256, 16
VL_7B, VL_72B, AWQ = "Qwen/Qwen2.5-VL-7B-Instruct", "Qwen/Qwen2.5-VL-72B-Instruct", "Qwen/Qwen2.5-VL-72B-Instruct-AWQ"
DISTILL = "RedHatAI/DeepSeek-R1-Distill-Qwen-32B-quantized.w4a16"
CHOICES = (
    (VL_7B, "a10g", 1),
    (AWQ, "t4", 8),
    (AWQ, "a100-80g", 4),
    (VL_72B, "a100-80g", 4),
    (AWQ, "l20", 8),
    (VL_72B, "l20", 8),
    (DISTILL, "rtx 4090", 8),
)


@dataclass(frozen=True, slots=True)
class Line:
    """One choice of the table: a row of `vplan select` for just so many cards."""

    row: Row

    @property
    def requests_per_s(self) -> float | None:
        """ESTIMATE: prompts of PROMPT and answers of ANSWER tokens, CONCURRENCY at once."""
        decode, prefill = self.row["estimated_decode_tokens_per_s"], self.row["estimated_prefill_tokens_per_s"]
        if not decode or not prefill:
            return None
        return 1 / (PROMPT / float(prefill) + ANSWER / float(decode))

    @property
    def usd_per_thousand(self) -> float | None:
        """ESTIMATE: dollars for a thousand such requests."""
        dollars, speed = self.row["usd_per_hour"], self.requests_per_s
        return None if dollars is None or not speed else float(dollars) / 3600 / speed * 1000


def lines() -> list[Line]:
    """Those with a price by dollars for a thousand requests, dated prices first; then those without, by speed."""
    found = []
    for model, gpu, count in CHOICES:
        options = SearchOptions(
            args=EngineArgs(max_model_len=LENGTH),
            given=("max_model_len",),
            workload=Workload(concurrency=CONCURRENCY, images=0 if model == DISTILL else 1),
        )
        selection = api.select(api.Request(model=model, gpus="", offline=True), options, only=[gpu], max_count=count)
        found.append(Line(next(row for row in selection.rows if row["gpus_per_node"] == count)))
    return sorted(found, key=_order)


def _order(line: Line) -> tuple[bool, bool, float]:
    cost = line.usd_per_thousand
    return cost is None, line.row["price_date"] == "undated", cost or -(line.requests_per_s or 0)


def table() -> str:
    head = (
        "model", "cards", "layout", "weights, GiB a card", f"requests of {LENGTH:,} held", "free on the fullest card",
        "requests/s (est.)", "USD/h", "USD for 1,000 requests (est.)", "price: date, offer, source",
    )  # fmt: skip
    text = ["| " + " | ".join(head) + " |", "| --- | --- | --- |" + " ---: |" * 6 + " --- |"]
    for line in lines():
        row = line.row
        layout = f"TP {row['tensor_parallel_size']}"
        layout += f", {row['replicas']} engines" if row["replicas"] != 1 else ""
        source = f"; {row['price_source']}" if row["price_source"] else ""
        cells = (
            f"`{row['model']}`",
            f"{row['gpus_per_node']} x {row['gpu']}",
            layout,
            f"{int(row['weights_memory_bytes'] or 0) / GIB:.1f}",
            f"{row['capacity_requests']:,}",
            format_gib(int(row["headroom_bytes"] or 0)),
            _short(line.requests_per_s),
            f"{row['usd_per_hour']:,.2f}" if row["usd_per_hour"] is not None else "",
            _short(line.usd_per_thousand),
            price_words(row) + source,
        )
        text.append("| " + " | ".join(cells) + " |")
    return "\n".join(text)


def _short(value: float | None) -> str:
    """Two figures: an estimate says no more."""
    return "" if value is None else f"{float(f'{value:.1e}'):,g}"


def page() -> str:
    return f"""# Choosing cards: the usual table, corrected

Guides pass a table around: a model, some cards, requests per second, dollars an hour. It has no dates, counts the
advertised gigabytes, and divides file sizes by cards. This is the same table from `vplan select`. Each line is planned
for vLLM {api.DEFAULT_VERSION} and {CONCURRENCY} requests at once of up to {LENGTH:,} tokens, with one image each
where the model sees, and keeps 10 % of what the device needs free on top.

- Memory and what is held come from the ledgers.
- Requests per second are **estimates** for prompts of {PROMPT:,} and answers of {ANSWER} tokens, and so is what follows
  from them (`planner/search/roofline.py`). Lines with a price stand by dollars for a thousand requests.
- A price has its date and source, or the words "no dated price"; a card without a known price has none. A machine is
  paid for whole where the offer is a machine.

{table()}

What the table in circulation gets wrong:

- **8 x T4 by "36 GB / 8 x 1.2 = 5.4 GB a card".** The AWQ checkpoint is 41 GiB: the vision tower, the embedding and
  the output head stay in 16 bit. Beside the weights above, a card's 14.6 GiB hold CUDA's context, the cache, graphs
  and the encoder. `--kv-cache-dtype fp8`, named in the same breath, is refused on compute capability 7.5.
- **"48 GB" and "80 GB" cards.** CUDA reports 44.3 GiB on an L20 and 79.2 GiB on an A100; [the catalog](catalogs.md)
  says how each total is known.
- **A price without machine and date.** Eight A100 of AWS are one machine, paid for whole when four serve. The L20 has
  no offer with a date here, the RTX 4090 none at all: give your own with `--price l20=1.1` for an hour, or
  `--buy "rtx 4090=1800" --amortise-months 36`.
- **Requests per second without a request.** A rate says nothing without the lengths of prompt and answer, and nothing
  about how many requests fit. State the load:

```console
$ vplan select --model {AWQ} --concurrency {CONCURRENCY} --max-model-len {LENGTH} --only t4,l20,a100-80g --offline
```

`python scripts/generate_choosing_page.py` rewrites this page, and a test holds it to what the planner says.
"""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
