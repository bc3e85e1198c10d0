"""A folder that vLLM can start with dummy weights, where the model has a config.json and little else.

The tokenizer is a stand-in: single bytes, filler up to the first special id, and the special tokens that the config
names. The engine's memory does not depend on its words, only on ids staying below the vocabulary.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from planner.errors import UnsupportedError
from planner.model.spec import ModelFiles

_SPECIAL_IDS: tuple[tuple[str, str], ...] = (
    ("vision_start_token_id", "<|vision_start|>"),
    ("vision_end_token_id", "<|vision_end|>"),
    ("image_token_id", "<|image_pad|>"),
    ("video_token_id", "<|video_pad|>"),
)
"""Key of config.json, and the text that the Qwen-VL processors look for."""
_QWEN_VL = {
    "qwen2_vl": ("Qwen2VLProcessor", False),
    "qwen2_5_vl": ("Qwen2_5_VLProcessor", False),
    "qwen3_vl": ("Qwen3VLProcessor", True),
    "qwen3_vl_moe": ("Qwen3VLProcessor", True),
    "qwen3_5": ("Qwen3VLProcessor", True),
    "qwen3_5_moe": ("Qwen3VLProcessor", True),
}
"""model_type -> processor class, and whether budgets are `size` edges with a video processor of its own."""
_QWEN_IDS = {
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "image_token_id": 151655,
    "video_token_id": 151656,
}
_QWEN_3_5_IDS = {
    "vision_start_token_id": 248053,
    "vision_end_token_id": 248054,
    "image_token_id": 248056,
    "video_token_id": 248057,
}
"""What a config.json without the key means: transformers 5.14.1 models/qwen2_vl and qwen3_5, configuration_*.py."""
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json")
_COPIED = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken")
_TEMPLATE = (
    "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}"
    "{% if c.type == 'image' or 'image' in c or 'image_url' in c %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif c.type == 'video' or 'video' in c %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ c.text }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
)


def dummy_folder(files: ModelFiles, into: Path) -> tuple[str, ...]:
    """Fill `into` with the model's small files and stand-ins for what is missing; says what was made.

    Safetensors headers decide the layout of GPTQ checkpoints, so those are refused here. Raises UnsupportedError where
    no stand-in is known.
    """
    _refuse_headers_needed(files.config)
    if files.path is not None:
        for pattern in _COPIED:
            for file in sorted(Path(files.path).glob(pattern)):
                if file.name != "model.safetensors.index.json" and file.is_file():
                    shutil.copyfile(file, into / file.name)
    for name, document in _documents(files):
        if not (into / name).exists():
            (into / name).write_text(json.dumps(document), encoding="utf-8")
    made = []
    if not any((into / name).exists() for name in _TOKENIZER_FILES):
        _write_tokenizer(files.config, into)
        made.append("tokenizer")
    if "vision_config" in files.config and not (into / "preprocessor_config.json").exists():
        _write_processor(files.config, into)
        made.append("processor")
    return tuple(made)


def _documents(files: ModelFiles) -> list[tuple[str, dict[str, Any]]]:
    """What is known of the model beside a folder: from a catalog or a hub."""
    found = [
        ("config.json", files.config),
        ("preprocessor_config.json", files.preprocessor),
        ("video_preprocessor_config.json", files.video_preprocessor),
        ("processor_config.json", files.processor),
        ("generation_config.json", files.generation),
        ("hf_quant_config.json", files.hf_quant),
    ]
    return [(name, document) for name, document in found if document]


def tokenizer_document(vocab_size: int, special: dict[int, str]) -> dict[str, Any]:
    """tokenizer.json of a byte-level tokenizer with `special` tokens at their ids and filler everywhere else."""
    base = min(special)
    vocab = {character: index for index, character in enumerate(_byte_characters())}
    if base < len(vocab):
        raise UnsupportedError("stand-in tokenizer", f"special token ids from {base} on leave no room for single bytes")
    vocab |= {f"\u0120filler{index}": index for index in range(len(vocab), base)}
    added = []
    for index in range(base, min(max(special) + 1, vocab_size)):
        added.append(
            {
                "id": index, "content": special.get(index, f"<|reserved_{index}|>"), "single_word": False,
                "lstrip": False, "rstrip": False, "normalized": False, "special": True,
            }
        )  # fmt: skip
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": byte_level, "post_processor": None, "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False, "vocab": vocab, "merges": [],
        },
    }  # fmt: skip


def _write_tokenizer(config: dict[str, Any], into: Path) -> None:
    text = config.get("text_config") if isinstance(config.get("text_config"), dict) else {}
    vocab_size = config.get("vocab_size") or (text or {}).get("vocab_size")
    if not isinstance(vocab_size, int) or vocab_size < 300:
        raise UnsupportedError("stand-in tokenizer", f"vocab_size {vocab_size!r} leaves no room for single bytes")
    ids = _default_ids(config) | {key: config[key] for key, _ in _SPECIAL_IDS if isinstance(config.get(key), int)}
    special = {ids[key]: text for key, text in _SPECIAL_IDS if key in ids}
    end = config.get("eos_token_id", (text or {}).get("eos_token_id"))
    end = end[0] if isinstance(end, list) and end else end
    first = min(special, default=vocab_size)
    if not isinstance(end, int) or not 256 <= end < vocab_size or end in special:
        end = first - 1
    special[end] = "<|end|>"
    (into / "tokenizer.json").write_text(json.dumps(tokenizer_document(vocab_size, special)), encoding="utf-8")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 1 << 24, "eos_token": "<|end|>",
        "pad_token": "<|end|>", "clean_up_tokenization_spaces": False, "chat_template": _TEMPLATE,
    }  # fmt: skip
    (into / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def _default_ids(config: dict[str, Any]) -> dict[str, int]:
    """The special ids that the model has though its config.json, or the catalog's, does not spell them."""
    model_type = str(config.get("model_type"))
    if "vision_config" not in config or model_type not in _QWEN_VL:
        return {}
    return _QWEN_3_5_IDS if model_type.startswith("qwen3_5") else _QWEN_IDS


def _write_processor(config: dict[str, Any], into: Path) -> None:
    family = _QWEN_VL.get(str(config.get("model_type")))
    if family is None:
        raise UnsupportedError(
            "stand-in processor",
            f"no stand-in processor for {config.get('model_type')!r}; add preprocessor_config.json",
        )
    name, sized = family
    vision = config["vision_config"]
    patch = vision.get("patch_size", 14)
    shared: dict[str, Any] = {
        "patch_size": patch, "temporal_patch_size": vision.get("temporal_patch_size", 2),
        "merge_size": vision.get("spatial_merge_size", 2), "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5], "processor_class": name,
    }  # fmt: skip
    image: dict[str, Any]
    if sized:
        image = {
            "size": {"longest_edge": 16777216, "shortest_edge": 65536},
            "image_processor_type": "Qwen2VLImageProcessorFast",
        }
        video = {
            "size": {"longest_edge": 25165824, "shortest_edge": 4096},
            "video_processor_type": "Qwen3VLVideoProcessor",
        }
        (into / "video_preprocessor_config.json").write_text(json.dumps(shared | video), encoding="utf-8")
    else:
        image = {"min_pixels": 3136, "max_pixels": 12845056, "image_processor_type": "Qwen2VLImageProcessor"}
    (into / "preprocessor_config.json").write_text(json.dumps(shared | image), encoding="utf-8")


def _refuse_headers_needed(config: dict[str, Any]) -> None:
    section = config.get("quantization_config")
    method = str(section.get("quant_method", "")).lower() if isinstance(section, dict) else ""
    if method in ("gptq", "auto_gptq", "gptq_marlin"):
        raise UnsupportedError(
            "dummy weights",
            "vLLM reads safetensors headers of GPTQ checkpoints; with dummy weights it would load them unquantized",
        )


def _byte_characters() -> list[str]:
    """The 256 printable characters that byte-level tokenizers write bytes as, in byte order of that alphabet."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    shifted = [256 + index for index in range(256 - len(printable))]
    return [chr(code) for code in (*printable, *shifted)]
