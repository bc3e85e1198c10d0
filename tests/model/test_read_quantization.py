import pytest

from planner.errors import InputError
from planner.model.quantization import read_quantization
from planner.values import Rejected


@pytest.mark.parametrize(
    ("config", "hf_quant", "method"),
    [
        ({}, {}, None),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, {}, "auto_awq"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, {}, "auto_gptq"),
        ({"quantization_config": {"quant_method": "fp8"}}, {}, "fp8"),
        ({"quantization_config": {"quant_method": "FP8"}}, {}, "fp8"),
        ({"model_type": "deepseek_v4", "quantization_config": {"quant_method": "fp8"}}, {}, "deepseek_v4_fp8"),
        ({"model_type": "gpt_oss", "quantization_config": {"quant_method": "mxfp4"}}, {}, "gpt_oss_mxfp4"),
        ({"quantization_config": {"quant_method": "mxfp4"}}, {}, "mxfp4"),
        ({"quantization_config": {"quant_method": "auto-round"}}, {}, "inc"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, {}, "bitsandbytes"),
        ({"compression_config": {"quant_method": "compressed_tensors"}}, {}, "compressed-tensors"),
        ({"text_config": {"quantization_config": {"quant_method": "compressed-tensors"}}}, {}, "compressed-tensors"),
        ({"quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4"}}, {}, "modelopt_fp4"),
        ({"quantization_config": {"quant_method": "modelopt", "quant_algo": "FP8"}}, {}, "modelopt"),
        ({"quantization_config": {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"}}, {}, "modelopt_mixed"),
        ({"quantization_config": {"quant_method": "modelopt", "quant_algo": "mxfp8"}}, {}, "modelopt_mxfp8"),
        ({}, {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}}, "modelopt"),
        ({}, {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4"}}, "modelopt_fp4"),
        ({}, {"quantization": {"quant_algo": "FP8"}}, None),
        ({"quantization_config": {"bits": 4}}, {}, None),
    ],
)
def test_every_dialect_ends_with_vllms_name(config, hf_quant, method):
    found = read_quantization(config, hf_quant)
    assert (None if found is None else found.method) == method


def test_config_json_wins_over_the_separate_file():
    config = {"quantization_config": {"quant_method": "fp8"}}
    found = read_quantization(config, {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4"}})
    assert found is not None
    assert found.raw == {"quant_method": "fp8"}


def test_reading_leaves_the_config_as_it_was():
    config = {"quantization_config": {"quant_method": "Compressed_Tensors"}}
    read_quantization(config, {})
    assert config == {"quantization_config": {"quant_method": "Compressed_Tensors"}}


def test_modelopt_algorithm_that_vllm_refuses():
    with pytest.raises(Rejected, match="Unknown ModelOpt quant algo: W4A8_AWQ"):
        read_quantization({}, {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "W4A8_AWQ"}})


def test_section_that_is_no_object():
    with pytest.raises(InputError):
        read_quantization({"quantization_config": "awq"}, {})
