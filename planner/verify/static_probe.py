"""Run by the Python that has vLLM, never imported here: let its own parser judge a command, without a GPU.

usage: python static_probe.py serve MODEL [options ...]
Prints JSON: {"vllm": version, "refused": null | "the parser's sentence"}, or {"vllm": null} where no vLLM can be asked.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys


def pretend_device() -> None:
    """Without a GPU vLLM cannot name its device, and its parser cannot be built: give it a name.

    Source: vLLM 0.26.0 config/device.py:56, platforms/__init__.py.
    """
    import vllm.platforms
    from vllm.platforms.interface import UnspecifiedPlatform

    if not vllm.platforms.current_platform.device_type:

        class Pretended(UnspecifiedPlatform):  # type: ignore[misc]
            device_name = "cuda"
            device_type = "cuda"

        vllm.platforms._current_platform = Pretended()


def judge(words: list[str]) -> dict[str, str | None]:
    errors = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        try:
            import vllm

            pretend_device()
            try:
                from vllm.entrypoints.openai.cli_args import make_arg_parser, validate_parsed_serve_args
            except ImportError:
                from vllm.entrypoints.common.cli_args import make_arg_parser, validate_parsed_serve_args
            from vllm.utils.argparse_utils import FlexibleArgumentParser

            parser = make_arg_parser(FlexibleArgumentParser(prog="vllm serve"))
        except Exception:
            return {"vllm": None}
        try:
            validate_parsed_serve_args(parser.parse_args(words))
        except SystemExit:
            lines = errors.getvalue().strip().splitlines()
            return {
                "vllm": vllm.__version__,
                "refused": lines[-1].removeprefix("vllm serve: error: ") if lines else "refused",
            }
        except Exception as error:
            return {"vllm": vllm.__version__, "refused": str(error)}
    return {"vllm": vllm.__version__, "refused": None}


if __name__ == "__main__":
    print(json.dumps(judge(sys.argv[2:])))
