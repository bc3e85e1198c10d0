"""Failures of images, videos and sound: limits, processors, placeholders, the encoder's budget.

Sources of the sentences: vLLM 0.6 to 0.29 engine/arg_utils.py, multimodal/processing, v1/core/encoder_cache_manager.py,
v1/engine/input_processor.py (0.26.0: 457-469). tests/data/doctor has a log of each.
"""

from __future__ import annotations

from planner.doctor.failure import Failure, Step, drop, put

MEDIA_FAILURES: tuple[Failure, ...] = (
    Failure(
        id="limit_mm_syntax",
        title="the old image=5 form of --limit-mm-per-prompt",
        patterns=(
            r"argument --limit-mm-per-prompt: Value (?P<limits>[a-z]+=\d+(?:,[a-z]+=\d+)*) cannot be converted",
            r"argument --limit-mm-per-prompt: invalid loads value: '(?P<limits>[a-z]+=\d+(?:,[a-z]+=\d+)*)'",
        ),
        bottleneck="flag",
        cause="The option takes JSON since 0.9; image=5 was the form before.",
        cure=(Step("write JSON", (put("--limit-mm-per-prompt", "{limits_json}"),)),),
        versions=("0.9.0", None),
    ),
    Failure(
        id="batched_tokens_media",
        title="a batch smaller than one image",
        patterns=(
            r"Chunked MM input disabled but max_tokens_per_mm_item \((?P<item_tokens>\d+)\) is larger than "
            r"max_num_batched_tokens "
            r"\((?P<batched>\d+)\)",
        ),
        bottleneck="batched_tokens",
        cause="This model attends within an image in both directions, so an image must fit in one batch.",
        facts=("One item has {item_tokens} tokens, a batch {batched}.",),
        cure=(Step("a batch that holds it", (put("--max-num-batched-tokens", "{item_tokens_rounded}"),)),),
        versions=("0.8.4", None),
    ),
    Failure(
        id="encoder_cache",
        title="an image, video or sound larger than the encoder cache",
        patterns=(
            r"prompt contains a\(n\) (?P<modality>\w+) item with (?:length )?(?P<item_tokens>\d+)"
            r"(?: embedding tokens)?, which exceeds the pre-allocated encoder cache size (?P<cache_tokens>\d+)",
        ),
        bottleneck="request",
        cause="The encoder's cache holds what a batch or the largest item that the limits allow takes, whichever "
        "is more; this item has more tokens than that.",
        facts=("The {modality} has {item_tokens} tokens, the cache holds {cache_tokens}.",),
        cure=(
            Step("a batch that holds it", (put("--max-num-batched-tokens", "{item_tokens_rounded}"),)),
            Step("or smaller media: fewer pixels or frames, max_pixels in --mm-processor-kwargs"),
        ),
        versions=("0.11.0", None),
        severity="request",
    ),
    Failure(
        id="mm_placeholders",
        title="media tokens and placeholders that do not match",
        patterns=(
            r"Attempted to assign .*?(?P<embedded>\d+) multimodal tokens to (?P<placeholders>\d+) "
            r"placeholders",
        ),
        bottleneck="batched_tokens",
        cause="A prompt was cut within an image (chunked prefill on the V0 engine, or a truncated prompt), or "
        "processor and "
        "model count an image's tokens differently (mixed transformers and vLLM releases, pixel limits given twice).",
        facts=("{embedded} embeddings, {placeholders} placeholders.",),
        cure=(
            Step(
                "a batch and a length that hold the largest media prompt",
                (put("--max-num-batched-tokens", "{placeholders_room}"),),
            ),
            Step(
                "the transformers release that this vLLM names; the same max_pixels in the client as in "
                "--mm-processor-kwargs"
            ),
        ),
    ),
    Failure(
        id="mm_limit_request",
        title="a request with more media than the server allows",
        patterns=(
            r"At most (?P<limit>\d+) (?P<modality>\w+)\(s\) may be provided in one (?:request|prompt)",
            r"You set (?P<modality>\w+)=(?P<limit>\d+) \(or defaulted to \d+\) in .?--limit-mm-per-prompt.?, "
            r"but passed (?P<passed>\d+)",
        ),
        bottleneck="request",
        cause="The server admits --limit-mm-per-prompt items of each kind; the request has more.",
        facts=("The limit is {limit} {modality}.", "The request has {passed}."),
        cure=(
            Step(
                "allow as many as requests carry, and pay their tokens and encoder memory",
                (put("--limit-mm-per-prompt", '{{"{modality}": {passed}}}'),),
            ),
        ),
        severity="request",
    ),
    Failure(
        id="mm_text_model",
        title="media limits on a model that vLLM takes for text only",
        patterns=(r"limit_mm_per_prompt.{0,3} is only supported for multimodal models",),
        bottleneck="flag",
        cause="This release does not know the architecture as multimodal: it is too old for the model, or the "
        "config lacks "
        "its vision part.",
        cure=(
            Step("a newer vLLM (and transformers), where the model's page asks for one"),
            Step("or leave the limit out", (drop("--limit-mm-per-prompt"),)),
        ),
    ),
    Failure(
        id="processor_failed",
        title="the model's processor refuses an input",
        patterns=(r"Failed to apply (?P<processor>\w+) on data=",),
        bottleneck="request",
        cause="The Hugging Face processor raised on these media: an image narrower than one merged patch (28 "
        "pixels for "
        "Qwen2-VL and 2.5-VL), pixel limits with min above max, or a transformers release that does not match.",
        facts=("{processor} refused it.",),
        cure=(
            Step("resize tiny images before they are sent; give min_pixels and max_pixels as multiples of the patch"),
            Step("the transformers release that this vLLM names"),
        ),
        severity="request",
    ),
    Failure(
        id="tokenizer_token",
        title="a tokenizer without the token that stands for media",
        patterns=(r"KeyError: ['\"](?P<token><[|\w][^'\"<>]*>)['\"]",),
        bottleneck="request",
        cause="The model's processor puts this token where an image, video or sound goes, and the tokenizer has no "
        "such token: it is another model's, or its added tokens were lost when it was converted.",
        facts=("The token is {token}.",),
        cure=(
            Step(
                "tokenizer.json, tokenizer_config.json and added_tokens.json of the model's own page, "
                "in one folder with its config"
            ),
        ),
        severity="request",
    ),
    Failure(
        id="processor_pixels",
        title="a pixel limit that the processor does not take",
        patterns=(
            r"[Kk]eyword argument `?(?P<keyword>\w+)`? is not a valid argument for this processor and will be "
            r"ignored",
        ),
        bottleneck="flag",
        cause="The limit is dropped without effect, so the full pixel budget is profiled and served.",
        facts=("Ignored: {keyword}.",),
        cure=(
            Step(
                "give it as the processor of this transformers release names it: max_pixels, or "
                "size.longest_edge (its square)"
            ),
        ),
        severity="warning",
    ),
    Failure(
        id="mrope_config",
        title="multimodal rope settings that transformers or vLLM misread",
        patterns=(
            r"assert \"factor\" in rope_scaling",
            r"rope_scaling must have a 'type' or 'rope_type' key",
            r"KeyError: 'mrope_section'",
        ),
        bottleneck="model",
        cause='transformers 4.45 rewrote the config\'s "mrope" to "default", which vLLM up to 0.6.2 takes for a '
        "scaling "
        "with a factor.",
        cure=(Step("vLLM 0.6.3 or later with the transformers it asks for; do not edit rope_scaling by hand"),),
        versions=("0.6.0", "0.6.2"),
    ),
)
