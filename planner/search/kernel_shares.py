"""How much of a card's roofs the kernels of vLLM reach, measured on A100, H100, H200, B200, L40S and RTX PRO 6000.

Source: kernel timings of vLLM 0.14 to 0.24 that ship with aiconfigurator-core 0.12.0 (Apache-2.0, NVIDIA), condensed by
scripts/build_kernel_shares.py: `value` is the median over the cards, `low` the least of their 10 % quantiles and `high`
the greatest of their 90 % quantiles. The same for every card, because most have no such measurements.

What the host costs was not measured there: EAGER_KERNEL_SECONDS, STEP_SECONDS, SEQUENCE_SECONDS and REQUEST_SECONDS
were chosen with the published runs of verification/published_speed.csv in view (docs/speed.md).
"""

from __future__ import annotations

from msgspec import Struct


class Share(Struct, frozen=True):
    """A constant with its spread. For shares of a roof and for seconds alike `low` <= `value` <= `high`."""

    low: float
    value: float
    high: float

    def at(self, speed: int, *, seconds: bool = False) -> float:
        """The end for a slow (-1), expected (0) or fast (1) engine. Seconds run the other way round."""
        return (self.low, self.value, self.high)[1 + (-speed if seconds else speed)]


BANDWIDTH_16 = Share(0.53, 0.77, 0.89)
BANDWIDTH_8 = Share(0.22, 0.67, 0.83)
"""Of memory bandwidth, when a matrix multiplication of few rows reads weights of 16 bits, or of fewer."""

FLOPS_16 = Share(0.52, 0.79, 0.93)
FLOPS_8 = Share(0.28, 0.48, 0.84)
"""Of dense FLOPS, when it has thousands of rows; of the 8-bit ones where both sides have 8 bits."""

ATTENTION_BANDWIDTH = Share(0.26, 0.66, 1.0)
ATTENTION_FLOPS = Share(0.40, 0.56, 0.64)
"""Of memory bandwidth in decode and of 16-bit FLOPS in prefill. The cache of a small batch may lie in L2."""

KERNEL_SECONDS = Share(0.0, 3.2e-6, 8.4e-6)
ATTENTION_SECONDS = Share(8.5e-6, 11.8e-6, 22.1e-6)
"""What a matrix multiplication takes above its bytes, and what attention takes at least, in a CUDA graph."""

EXPERT_BANDWIDTH = Share(0.15, 0.62, 0.97)
EXPERT_FLOPS = Share(0.12, 0.30, 0.55)
EXPERT_SECONDS = Share(25e-6, 45e-6, 120e-6)
"""Of memory bandwidth by the experts that a small batch is routed to, of 16-bit FLOPS from 4096 tokens on, and the
least that a layer of experts takes; over all storage formats, at 16-bit FLOPS for all of them."""

NVLINK = Share(0.18, 0.33, 0.49)
PCIE = {2: Share(0.25, 0.29, 0.33), 4: Share(0.05, 0.14, 0.24), 8: Share(0.03, 0.10, 0.20)}
"""Of the link's one-way bandwidth, in all-reduces from 4 MiB on. Two topologies of PCIe were measured."""

NVLINK_SECONDS = {2: Share(4.2e-6, 4.7e-6, 7.0e-6), 4: Share(4.5e-6, 4.9e-6, 7.2e-6), 8: Share(4.6e-6, 5.3e-6, 9.9e-6)}
PCIE_SECONDS = {
    2: Share(4.1e-6, 4.8e-6, 5.9e-6),
    4: Share(12.7e-6, 13.2e-6, 15.6e-6),
    8: Share(24.3e-6, 25.8e-6, 27.5e-6),
}
"""Of an all-reduce of up to 8 KiB between so many cards."""

PCIE_BYTES_PER_S = {3: 16_000_000_000, 4: 32_000_000_000, 5: 64_000_000_000}
"""One way, 16 lanes."""

EAGER_KERNEL_SECONDS = Share(15e-6, 45e-6, 70e-6)
"""What the host takes to launch one kernel without graphs."""

STEP_SECONDS = Share(0.2e-3, 0.8e-3, 3.0e-3)
SEQUENCE_SECONDS = Share(2e-6, 15e-6, 60e-6)
"""What the host adds to a step, and to it for each sequence: scheduling, sampling, answers."""

REQUEST_SECONDS = Share(2e-3, 12e-3, 60e-3)
"""What a request takes before its first step: HTTP, tokens, the queue of the engine."""
