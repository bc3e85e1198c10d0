"""Encoder memory against the media that requests bring: rows of the `media` table."""

from __future__ import annotations

from collections.abc import Sequence

from planner.memory.assess import Assessment
from planner.memory.multimodal.budget import encoder_budget
from planner.memory.multimodal.media import active_modalities
from planner.memory.multimodal.workload import MediaWorkload, encoder_runtime_peak_bytes, refused_items, workload_items
from planner.report.rows import Row, who

IMAGE_SIZES = ((512, 512), (1024, 1024), (1920, 1080), (3840, 2160))
IMAGE_COUNTS = (1, 2, 4, 8, 16, 32)


def media_rows(
    assessment: Assessment,
    sizes: Sequence[tuple[int, int]] = IMAGE_SIZES,
    counts: Sequence[int] = IMAGE_COUNTS,
) -> list[Row]:
    """A row for each image size and number of images in flight, as many requests of one image each.

    Empty for a model without images or with images limited to none; sizes that the limits or the encoder cache refuse
    have no row.
    """
    deployment, per_gpu = assessment.deployment, assessment.estimate.per_gpu
    if deployment is None or per_gpu is None or deployment.model.vision is None:
        return []
    vision, config = deployment.model.vision, deployment.config
    if "image" not in active_modalities(vision, config):
        return []
    budget = encoder_budget(deployment.model, config)
    free = per_gpu.total_memory_bytes - per_gpu.used_after_startup_bytes
    rows: list[Row] = []
    for width, height in sizes:
        for count in counts:
            workload = MediaWorkload(requests=count, images=1, image_size=(width, height))
            if refused_items(vision, config, budget, workload):
                continue
            item, _ = workload_items(vision, config, workload)[0]
            peak = encoder_runtime_peak_bytes(deployment.model, deployment.shares[0], config, workload)
            rows.append(
                {
                    **who(assessment.estimate),
                    "modality": "image",
                    "width_pixels": width,
                    "height_pixels": height,
                    "seconds": None,
                    "items": count,
                    "tokens_per_item": item.prompt_tokens,
                    "embeddings_per_item": item.tokens,
                    "encoder_budget_tokens": budget.tokens,
                    "items_per_step": max(1, min(count, config.max_num_seqs, budget.tokens // max(item.tokens, 1))),
                    "vision_encoder_runtime_peak_bytes": peak,
                    "device_free_bytes": free,
                    "fits_device": peak <= free,
                }
            )
    return rows
