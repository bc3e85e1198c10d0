"""Failures of configuration: options, quantization, data types, splits, lengths, models.

Sources of the sentences: vLLM 0.6 to 0.29 config.py and config/*, engine/arg_utils.py, model_executor/layers;
Xinference 1.x. tests/data/doctor has a log of each.
"""

from __future__ import annotations

from planner.doctor.failure import Edit, Failure, Step, drop, put

CONFIGURATION_FAILURES: tuple[Failure, ...] = (
    Failure(
        id="flag_value",
        title="an option with a value that vLLM's parser refuses",
        patterns=(
            r"argument (?P<option>--[\w-]+)\S*: (?:Value .+? cannot be converted|invalid \w+ value|expected "
            r"(?:one|at least one) argument)",
            r"argument (?P<option>--[\w-]+)\S*: invalid choice: (?P<choice>\S+)",
            r"error: the following arguments are required: (?P<option>\S+)",
        ),
        bottleneck="flag",
        cause="The value does not have the form that the option takes. JSON values want single quotes around "
        "them and "
        "plain double quotes inside, with no backslashes.",
        facts=("The option is {option}.",),
        cure=(
            Step(
                "correct the value; `vplan estimate --command '...'` reads options as vLLM does and says what is wrong"
            ),
        ),
    ),
    Failure(
        id="flag_removed",
        title="options that this vLLM does not know",
        patterns=(r"error: unrecognized arguments: (?P<unrecognized>.+)",),
        bottleneck="flag",
        cause="The release that runs has no such option: it was removed, renamed, or belongs to another program.",
        facts=("Not known: {unrecognized}.",),
        cure=(Step("leave them out, or write their successors", (Edit("rename", "{unrecognized}"),)),),
    ),
    Failure(
        id="xinference_argument",
        title="an engine option that Xinference hands on under a name vLLM does not know",
        patterns=(r"EngineArgs\.__init__\(\) got an unexpected keyword argument '(?P<argument>[\w-]+)'",),
        bottleneck="flag",
        cause="Xinference passes every option it does not know to the engine under the name as written; vLLM's "
        "argument "
        "names have underscores, not dashes, and change between releases.",
        facts=("The engine was given {argument}.",),
        cure=(Step("write it with underscores", (Edit("rename", "--{argument}", "--{argument_underscored}"),)),),
    ),
    Failure(
        id="heads_divisibility",
        title="attention heads that tensor parallelism does not divide",
        patterns=(
            r"Total number of attention heads \((?P<heads>\d+)\) must be divisible by tensor parallel size "
            r"\((?P<tp>\d+)\)",
        ),
        bottleneck="heads_divisibility",
        cause="Every rank takes a whole number of heads.",
        facts=("{heads} heads do not split over {tp} ranks; {tp_fit} do it.",),
        cure=(
            Step("a size that divides them", (put("--tensor-parallel-size", "{tp_fit}"),)),
            Step("and --pipeline-parallel-size for the cards that are left"),
        ),
    ),
    Failure(
        id="parallelism",
        title="more ranks than cards",
        patterns=(
            r"World size \((?P<world>\d+)\) is larger than the number of available GPUs \((?P<cards>\d+)\)",
            r"local_world_size \((?P<world>\d+)\) must be less than or equal to the number of visible devices "
            r"\((?P<cards>\d+)\)",
            r"ensure that world_size \((?P<world>\d+)\) is less than than max local gpu count \((?P<cards>\d+)\)",
            r"The number of required GPUs exceeds the total number of available GPUs in the placement group",
        ),
        bottleneck="parallelism",
        cause="Tensor x pipeline parallel size is larger than the number of cards that the process sees.",
        facts=("{world} ranks, {cards} cards.",),
        cure=(
            Step("as many ranks as cards", (put("--tensor-parallel-size", "{cards}"),)),
            Step(
                "or make the other cards visible: CUDA_VISIBLE_DEVICES, --gpus of docker, a Ray cluster over "
                "the machines"
            ),
        ),
    ),
    Failure(
        id="quantization_alignment",
        title="quantization groups that the split cuts through",
        patterns=(
            r"The (?:input|output) size is not aligned with the quantized weight shape",
            r"Weight (?:input|output)_size_per_partition = (?P<size>\d+) is not divisible by",
        ),
        bottleneck="quantization_alignment",
        cause="A rank's part of a layer must be a whole number of quantization groups (K / TP divisible by "
        "group_size). "
        "Repositories that pad the intermediate size (29568 to 29696 for the 72B of Qwen2 and 2.5) split 2, 4 "
        "and 8 ways.",
        cure=(
            Step("a checkpoint with padded sizes, from the model's own publisher and up to date"),
            Step(
                "or pipeline instead of tensor parallelism",
                (Edit("set", "--pipeline-parallel-size", "{tp_used}"), put("--tensor-parallel-size", "1")),
            ),
        ),
    ),
    Failure(
        id="quantization_block",
        title="FP8 blocks that the split cuts through",
        patterns=(
            r"output_size of gate's and up's weight = (?P<size>\d+) is not divisible by weight quantization "
            r"block_n = (?P<block>\d+)",
            r"input_size of down's weight = (?P<size>\d+) is not divisible by weight quantization block_k = "
            r"(?P<block>\d+)",
            r"is not divisible by weight quantization block_[nk] = (?P<block>\d+)",
        ),
        bottleneck="quantization_alignment",
        cause="Block-quantized FP8 experts are split in blocks; a rank's part must be a whole number of them.",
        facts=("A rank would hold {size} columns, blocks are {block} wide.",),
        cure=(
            Step("keep experts whole on a rank", (put("--enable-expert-parallel", ""),)),
            Step("or a smaller --tensor-parallel-size"),
        ),
    ),
    Failure(
        id="quantization_missing",
        title="a quantization asked for that the checkpoint does not have",
        patterns=(r"Cannot find the config file for (?P<method>awq|gptq|\w+)",),
        bottleneck="quantization_capability",
        cause="--quantization names how the checkpoint is quantized; it does not quantize one. This repository is not.",
        facts=("{method} was asked for.",),
        cure=(
            Step("leave the option out, and vLLM reads the method from the checkpoint", (drop("--quantization"),)),
            Step("or use a checkpoint that is quantized so"),
        ),
    ),
    Failure(
        id="quantization_mismatch",
        title="a quantization that contradicts the checkpoint",
        patterns=(
            r"Quantization method specified in the model config \((?P<stored>[\w-]+)\) does not match the "
            r"quantization method specified "
            r"in the `?quantization`? argument \((?P<method>[\w-]+)\)",
        ),
        bottleneck="flag",
        cause="The checkpoint says how it is quantized, and the option says otherwise.",
        facts=("The checkpoint is {stored}, the option says {method}.",),
        cure=(Step("leave the option out", (drop("--quantization"),)),),
    ),
    Failure(
        id="quantization_capability",
        title="a quantization that the card has no kernels for",
        patterns=(
            r"The quantization method (?P<method>\S+) is not supported for the current GPU\. Minimum "
            r"capability: (?P<need>\d+)\. "
            r"Current capability: (?P<have>\d+)",
            r"Quantization scheme is not supported for [', ]*the current GPU\. Min capability: (?P<need>\d+)\. "
            r"[', ]*Current capability: (?P<have>\d+)",
        ),
        bottleneck="quantization_capability",
        cause="The kernels of this quantization need a newer card.",
        facts=("Needed: compute capability {need}; the card has {have}.",),
        cure=(
            Step(
                "a checkpoint in a form that the card supports (from 7.5 on AWQ and GPTQ; from 8.9 on FP8), or "
                "a newer card"
            ),
        ),
    ),
    Failure(
        id="quantization_dtype",
        title="a data type that the quantization does not take",
        patterns=(
            r"torch\.(?P<dtype>\w+) is not supported for quantization method (?P<method>\w+)\. Supported "
            r"dtypes: \[(?:torch\.)?(?P<dtype_ok>\w+)",
        ),
        bottleneck="dtype_capability",
        cause="The quantization's kernels compute in other types only.",
        facts=("{method} computes in {dtype_ok}, not in {dtype}.",),
        cure=(Step("use it", (put("--dtype", "{dtype_ok}"),)),),
    ),
    Failure(
        id="dtype_bfloat16",
        title="bfloat16 on a card that lacks it",
        patterns=(
            r"Bfloat16 is only supported on GPUs with compute capability of at least 8\.0\. Your (?P<card>.+?) "
            r"GPU has compute capability "
            r"(?P<capability>\d+\.\d+)",
        ),
        bottleneck="dtype_capability",
        cause="bfloat16 needs compute capability 8.0 (Ampere).",
        facts=("{card} has {capability}.",),
        cure=(Step("float16, for which the weights are cast", (put("--dtype", "half"),)),),
    ),
    Failure(
        id="dtype_model",
        title="float16 on a model that overflows in it",
        patterns=(r"The model type '(?P<model_type>\w+)' does not support float16",),
        bottleneck="dtype_capability",
        cause="The model's activations leave the range of float16.",
        cure=(Step("bfloat16 (cards from 8.0 on) or float32", (put("--dtype", "bfloat16"),)),),
    ),
    Failure(
        id="kv_fp8_capability",
        title="an FP8 KV cache on a card without FP8",
        patterns=(
            r"FP8 KV cache is not supported by the \w+ attention backend on\s+(?P<card>.+?) \(compute "
            r"capability (?P<capability>[\d.]+)\)",
            r"fp8e4nv data type is not supported on CUDA arch < \d+",
            r"type fp8e4nv not supported in this architecture",
        ),
        bottleneck="kv_cache_dtype",
        cause="The attention kernels read FP8 (e4m3) natively from compute capability 8.9 on; older cards get "
        "no kernel.",
        facts=("{card} has compute capability {capability}.",),
        cure=(Step("a 16-bit cache, twice as large for each token", (drop("--kv-cache-dtype"),)),),
    ),
    Failure(
        id="max_model_len_derived",
        title="max_model_len beyond what the model was made for",
        patterns=(
            r"User-specified max_model_len \((?P<asked_len>\d+)\) is greater than the derived max_model_len "
            r"\((?:\w+=)?(?P<model_len>\d+)",
        ),
        bottleneck="max_model_len",
        cause="Positions beyond the config's limit give wrong output or crash the kernels.",
        facts=("{asked_len} asked for, {model_len} in the config.",),
        cure=(
            Step("the model's own limit", (put("--max-model-len", "{model_len}"),)),
            Step("or extend it on purpose with rope scaling through --hf-overrides, as the model's page says"),
        ),
    ),
    Failure(
        id="batched_tokens",
        title="a batch smaller than a request or than the number of sequences",
        patterns=(
            r"max_num_batched_tokens \((?P<batched>\d+)\) is smaller than max_model_len "
            r"\((?P<batched_needed>\d+)\)\. This effectively",
            r"max_num_batched_tokens \((?P<batched>\d+)\) must be greater than or equal to max_num_seqs "
            r"\((?P<batched_needed>\d+)\)",
        ),
        bottleneck="batched_tokens",
        cause="Without chunked prefill a whole prompt goes into one batch; and each sequence needs a token of it.",
        facts=("{batched} tokens a batch, {batched_needed} needed.",),
        cure=(Step("a larger batch", (put("--max-num-batched-tokens", "{batched_needed}"),)),),
    ),
    Failure(
        id="architecture",
        title="an architecture that this vLLM does not serve",
        patterns=(
            r"Model architectures \[(?P<architecture>[^\]]+)\] (?:are not supported for now|failed to be inspected)",
            r"does not recognize this architecture",
            r"has no vLLM implementation",
        ),
        bottleneck="model",
        cause="The release is older than the model (or the model was removed since), or its code failed to "
        "import: then "
        "the reason is in the lines before.",
        facts=("The checkpoint asks for {architecture}.",),
        cure=(
            Step(
                "the vLLM release that the model's page names; `vplan catalog models show ID` says what is known here"
            ),
        ),
    ),
    Failure(
        id="trust_remote_code",
        title="a model whose own code must be allowed",
        patterns=(r"[Tt]he option [`'‘]?trust_remote_code=[Tt]rue", r"pass the argument [`']?trust_remote_code=True"),
        bottleneck="model",
        cause="The checkpoint brings its own Python code for config or processor, which is run only on demand.",
        cure=(Step("read that code, then allow it", (put("--trust-remote-code", ""),)),),
    ),
    Failure(
        id="context_length",
        title="a request longer than max_model_len",
        patterns=(
            r"maximum context length is (?P<limit>\d+) tokens\. However, you requested (?P<requested>\d+) tokens",
            r"Input prompt \((?P<requested>\d+) tokens\) is too long and exceeds limit of (?P<limit>\d+)",
            r"decoder prompt \(length (?P<requested>\d+)\) is longer than the maximum model length of (?P<limit>\d+)",
        ),
        bottleneck="request",
        cause="Prompt and answer together must fit in max_model_len.",
        facts=("{requested} tokens asked for, {limit} allowed.",),
        cure=(
            Step("a larger length, if model and cache allow it", (put("--max-model-len", "{requested_rounded}"),)),
            Step("or a shorter prompt, or a smaller max_tokens"),
        ),
        severity="request",
    ),
)
