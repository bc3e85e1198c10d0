"""Many sets of flags of one model on one pool: the weights are split once for each layout."""

from __future__ import annotations

from dataclasses import dataclass, field

from planner.engine.args import EngineArgs
from planner.engine.config import EngineConfig
from planner.engine.resolve import resolve
from planner.hardware.spec import GpuPool
from planner.memory.assess import Assessment, Deployment, assess_deployment, deploy, refused_estimate
from planner.memory.intervals import Confidence
from planner.memory.multimodal.workload import MediaWorkload
from planner.model.spec import ModelSpec
from planner.values import Rejected


@dataclass(slots=True)
class Variants:
    """Assesses flags one set after the other; the answers are those of planner.memory.assess.assess, with the same
    `workload` and `confidence`."""

    model: ModelSpec
    gpus: GpuPool
    vllm_version: str
    workload: MediaWorkload | None = None
    confidence: Confidence = "safe"
    _known: dict[EngineConfig, Deployment] = field(default_factory=dict)

    def assess(self, args: EngineArgs) -> Assessment:
        """What vLLM does with these flags; a refusal is an answer. Raises InputError and UnsupportedError."""
        try:
            config = resolve(self.model, self.gpus.gpu, args, self.vllm_version)
            layout = _layout(config)
            deployment = deploy(self.model, self.gpus, config, self._known.get(layout))
        except Rejected as refused:
            return Assessment(refused_estimate(self.model.name, self.gpus, self.vllm_version, refused.rejection))
        self._known.setdefault(layout, deployment)
        return assess_deployment(deployment, self.workload, self.confidence)


def _layout(config: EngineConfig) -> EngineConfig:
    """The configuration with what does not touch the split of the weights put to one value."""
    return config.model_copy(
        update={
            "max_model_len": 1,
            "gpu_memory_utilization": 0.5,
            "kv_cache_memory_bytes": None,
            "num_gpu_blocks_override": None,
            "mm_limits": (),
            "mm_limit_options": (),
            "warnings": (),
            "block_size": 1,
            "user_block_size": False,
        }
    )
