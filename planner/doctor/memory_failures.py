"""Failures of memory: on the card at each stage of a launch and under load, in the cache, and of the host.

Sources of the sentences: vLLM 0.6 to 0.29 worker/worker.py, v1/worker/gpu_worker.py, v1/worker/gpu_model_runner.py,
v1/core/kv_cache_utils.py; PyTorch's CUDACachingAllocator. tests/data/doctor has a log of each.
"""

from __future__ import annotations

from planner.doctor.failure import Failure, Step, fill, put

_SIZE = r"[0-9.]+ ?[KMGT]i?B"
OUT_OF_MEMORY = (
    rf"(?:torch\.(?:cuda\.)?)?OutOfMemoryError\b.{{0,4}}(?:CUDA|HIP) out of memory\.(?: Tried to allocate "
    rf"(?P<asked>{_SIZE})\. "
    rf"GPU (?P<gpu>\d+) has a total capacity of (?P<total>{_SIZE}) of which (?P<free>{_SIZE}) is free)?",
    rf"(?:CUDA|HIP) out of memory\. Tried to allocate (?P<asked>{_SIZE})\. "
    rf"GPU (?P<gpu>\d+) has a total capacity of (?P<total>{_SIZE}) of which (?P<free>{_SIZE}) is free",
    r"CUDA error: out of memory",
    r"CUDA out of memory\. Tried to allocate",
)
_CARD = "The card ({total}) had {free} left when {asked} more were asked for."
_WEIGHTS = "The weights had taken {weights} GiB of this card."
_LOWER_SHARE = Step(
    "leave more of the card outside the budget: a lower --gpu-memory-utilization",
    (put("--gpu-memory-utilization", "{utilization_lower}"),),
)
_FEWER_SEQUENCES = Step(
    "fewer sequences at once: sampler and runner buffers grow with max_num_seqs x vocabulary",
    (put("--max-num-seqs", "{max_num_seqs_lower}"),),
)
_SMALLER_MEDIA = Step(
    "a smaller pixel budget: an image of max_pixels costs max_pixels / (patch x merge)^2 tokens, and the "
    "encoder pays "
    "for every patch",
    (fill("--mm-processor-kwargs", '{{"max_pixels": 1003520}}'),),
)
_FEWER_MEDIA = Step(
    "only the media that are needed, no video where none is sent",
    (fill("--limit-mm-per-prompt", '{{"image": 1, "video": 0}}'),),
)

MEMORY_FAILURES: tuple[Failure, ...] = (
    Failure(
        id="startup_memory",
        title="less memory free at startup than the share asked for",
        patterns=(
            r"[Ff]ree memory on device(?: cuda:\d+)? \((?P<free_gib>[\d.]+)/(?P<total_gib>[\d.]+) GiB\) on "
            r"startup is less than "
            r"desired GPU memory utilization \((?P<utilization>[\d.]+), (?P<requested_gib>[\d.]+) GiB\)",
        ),
        bottleneck="startup_memory",
        cause="vLLM asks for a share of the whole card, and other processes (or an earlier vLLM that still "
        "runs) hold it.",
        facts=(
            "{free_gib} of {total_gib} GiB were free, {requested_gib} GiB ({utilization}) were asked for: "
            "{missing_gib} GiB are missing.",
        ),
        cure=(
            Step(
                "end the other processes on the card (`vplan probe` names them), or pick free cards with "
                "CUDA_VISIBLE_DEVICES"
            ),
            Step("or ask for no more than is free", (put("--gpu-memory-utilization", "{utilization_free}"),)),
        ),
        versions=("0.8.4", None),
    ),
    Failure(
        id="profiling_disturbed",
        title="another process freed memory while vLLM measured its own",
        patterns=(
            r"Error in memory profiling\.\s+Initial free memory\s+(?P<before>[\d.]+)(?: GiB)?,\s+current free "
            r"memory\s+(?P<after>[\d.]+)",
        ),
        bottleneck="startup_memory",
        cause="Free memory grew between the first and the second look, so another process on the card ended "
        "meanwhile; "
        "vLLM cannot tell its own share and stops.",
        facts=("Free before {before}, after {after}.",),
        cure=(Step("start it again when the card is quiet: start engines that share a card one after the other"),),
    ),
    Failure(
        id="oom_sampler_warmup",
        title="out of memory while the sampler warms up",
        patterns=(
            r"CUDA out of memory occurred when warming up sampler with (?P<dummy_seqs>\d+) dummy requests",
            *OUT_OF_MEMORY[:3],
        ),
        context=(
            r"warming up sampler with (?P<dummy_seqs>\d+) dummy requests",
            r"_dummy_sampler_run",
            r"(?s)in warmup_kernels.*sampler\.py",
        ),
        bottleneck="device_memory",
        cause="The cache is sized before the sampler has run for a full batch, and its logits, sorted copies and "
        "probabilities did not fit in what the budget leaves of the card.",
        facts=("{dummy_seqs} sequences were sampled at once.", _CARD),
        cure=(_FEWER_SEQUENCES, _LOWER_SHARE),
        versions=("0.8.0", None),
    ),
    Failure(
        id="oom_profiling_encoder",
        title="out of memory while the vision encoder is profiled",
        patterns=OUT_OF_MEMORY,
        context=(
            r"(?s)(?:profile_run|determine_(?:num_available_blocks|available_memory)).*"
            r"(?:_process_image_input|_process_video_input|self\.visual\(|get_multimodal_embeddings|embed_multim"
            r"odal|vision_model)",
            r"Starting profile run for multi-modal models",
            r"(?s)(?:too short to hold the multi-modal embeddings|Encoder cache will be initialized).*"
            r"(?:determine_num_available_blocks|profile_run|determine_available_memory)",
        ),
        bottleneck="device_memory",
        cause="At startup vLLM runs the encoder over the largest media that the limits and the pixel budget allow. "
        "Releases from 0.8 on do so for the largest image and video there is, which is why an upgrade can fail where "
        "nothing else changed; --max-model-len and the utilization do not change this peak.",
        facts=(_WEIGHTS, _CARD),
        cure=(_SMALLER_MEDIA, _FEWER_SEQUENCES, _FEWER_MEDIA),
    ),
    Failure(
        id="oom_profiling",
        title="out of memory in the profile run",
        patterns=OUT_OF_MEMORY,
        context=(r"profile_run\(|in profile_run|determine_available_memory\(|determine_num_available_blocks\(",),
        bottleneck="device_memory",
        cause="The weights are in, but one forward pass over max_num_batched_tokens does not fit beside them.",
        facts=(_WEIGHTS, _CARD),
        cure=(
            Step("a smaller batch", (put("--max-num-batched-tokens", "{batched_lower}"),)),
            _FEWER_SEQUENCES,
            Step("or more cards: a larger --tensor-parallel-size"),
        ),
    ),
    Failure(
        id="oom_graph_capture",
        title="out of memory while CUDA graphs are captured",
        patterns=OUT_OF_MEMORY,
        context=(
            r"capture_model\(|in capture_model|capture_end\(|cuda_graph\.|_capture_cudagraphs|capture_begin",
            r"Capturing cudagraphs for decoding|Capturing the model for CUDA graphs",
        ),
        bottleneck="device_memory",
        cause="The cache already fills the budget, and CUDA graphs come on top of it, out of the share of the "
        "card that "
        "--gpu-memory-utilization leaves.",
        facts=(
            "The budget was {utilization_log} of {total_log} GiB, of which {cache_log} GiB went to the cache.",
            _CARD,
        ),
        cure=(
            _LOWER_SHARE,
            Step(
                "fewer graphs: a smaller --max-cudagraph-capture-size", (fill("--max-cudagraph-capture-size", "128"),)
            ),
            Step("or none at all, at the price of slower decoding: --enforce-eager"),
        ),
    ),
    Failure(
        id="oom_loading",
        title="out of memory while the weights are loaded",
        patterns=(
            r"Failed to load model - not enough GPU memory",
            *OUT_OF_MEMORY,
        ),
        context=(
            r"Failed to load model - not enough GPU memory",
            r"in create_weights|create_weights\(|in "
            r"load_model|load_model\(|initialize_model\(|process_weights_after_loading|make_layers\(|get_model\(",
        ),
        bottleneck="weights",
        cause="One rank's share of the weights is larger than what the card has. No length, batch or "
        "utilization changes "
        "the weights.",
        facts=(_CARD,),
        cure=(
            Step("split over more cards: a larger --tensor-parallel-size"),
            Step("or a smaller form of the model: a quantized checkpoint (AWQ, GPTQ, FP8) where the card supports it"),
            Step("or check that the card is empty before the start (`vplan probe`)"),
        ),
    ),
    Failure(
        id="oom_media_request",
        title="out of memory at the first large image or video",
        patterns=OUT_OF_MEMORY,
        context=(
            r"_execute_mm_encoder|_merge_multimodal_embeddings|_process_image_input|_process_video_input|self\.v"
            r"isual\(",
            r"vit_attn_wrappers|models/qwen[0-9_]*vl[a-z_0-9]*\.py|models/(?:clip|siglip|intern_vit|pixtral)\.py",
            r"model id: \S*(?:vl|vision)\S*, error:",
        ),
        bottleneck="device_memory",
        cause="The encoder's activations for a request's media come on top of the filled cache. Releases whose "
        "runner "
        "does not profile the encoder (V2 of 0.26) leave no room for them, and a large image finds none.",
        facts=(_CARD,),
        cure=(_SMALLER_MEDIA, _FEWER_MEDIA, _LOWER_SHARE),
    ),
    Failure(
        id="oom_serving",
        title="out of memory under load",
        patterns=OUT_OF_MEMORY,
        context=(
            r"execute_model|run_engine_loop|run_busy_loop|engine_step|step_fn",
            r"Avg prompt throughput|Application startup complete|\"POST /v1/",
        ),
        bottleneck="device_memory",
        cause="After startup the card is nearly full, and a batch asked for more than is left: sampling with "
        "penalties or "
        "logprobs, an allocator that fragments, or a second process on the card.",
        facts=(_CARD,),
        cure=(_LOWER_SHARE, _FEWER_SEQUENCES),
    ),
    Failure(
        id="oom_unplaced",
        title="out of memory on the card, at a stage that the text does not show",
        patterns=OUT_OF_MEMORY,
        bottleneck="device_memory",
        cause="The card ran out of memory. The text lacks the traceback that would tell when; give the whole log.",
        facts=(_CARD,),
        cure=(_LOWER_SHARE, _FEWER_SEQUENCES, _SMALLER_MEDIA),
        severity="symptom",
    ),
    Failure(
        id="kv_no_memory",
        title="nothing left for the KV cache",
        patterns=(
            r"No available memory for the cache blocks",
            r"Cannot auto-fit max_model_len: not enough GPU memory",
        ),
        bottleneck="kv_cache",
        cause="Weights, activations and everything else already take the whole budget (utilization x total memory).",
        facts=(_WEIGHTS, "Left for the cache: {cache_log} GiB."),
        cure=(
            Step(
                "a larger budget, as long as the card is free",
                (put("--gpu-memory-utilization", "{utilization_higher}"),),
            ),
            Step(
                "a smaller profile run",
                (put("--max-num-batched-tokens", "{batched_lower}"), put("--max-num-seqs", "{max_num_seqs_lower}")),
            ),
            Step("or more cards, or a quantized checkpoint"),
        ),
    ),
    Failure(
        id="kv_too_small",
        title="the KV cache holds no single request of max_model_len",
        patterns=(
            r"model'?s?'?s? max seq len \((?P<max_len>\d+)\), \((?P<need_gib>[\d.]+) GiB KV cache is needed, "
            r"which is larger than the "
            r"available KV cache memory \((?P<have_gib>[\d.]+) GiB\)(?:\. Based on the available memory, the "
            r"estimated maximum model "
            r"length is (?P<estimated>\d+))?",
            r"max seq len \((?P<max_len>\d+)\) is larger than the maximum number of tokens that can be stored "
            r"in KV cache "
            r"\((?P<cache_tokens>\d+)\)",
        ),
        bottleneck="kv_cache",
        cause="A request may grow to max_model_len tokens, and the cache must hold at least one such request.",
        facts=(
            "{max_len} tokens need {need_gib} GiB; {have_gib} GiB are there.",
            "{max_len} tokens are allowed; the cache holds {cache_tokens}.",
        ),
        cure=(
            Step("a length that fits", (put("--max-model-len", "{max_len_fit}"),)),
            Step(
                "or a larger cache: higher --gpu-memory-utilization, --kv-cache-dtype fp8 where the card "
                "supports it, more cards"
            ),
        ),
    ),
    Failure(
        id="preemption",
        title="requests are preempted for want of KV cache",
        patterns=(r"is preempted by PreemptionMode\.(?:RECOMPUTE|SWAP)",),
        bottleneck="kv_cache",
        cause="Running requests grew until the cache was full; vLLM throws one out and computes it again later. "
        "Nothing "
        "fails, but latency does.",
        cure=(
            Step("admit fewer requests at once", (put("--max-num-seqs", "{max_num_seqs_lower}"),)),
            Step("or a larger cache: --kv-cache-dtype fp8, more cards, a shorter --max-model-len does not help here"),
        ),
        severity="warning",
    ),
)
