"""Run by the Python that has vLLM, never imported here: let its own parser judge a command, without a GPU.

usage: python static_probe.py serve MODEL [options ...]
Prints JSON: {"vllm": version, "refused": null | "the parser's sentence"}, or {"vllm": null} where there is no vLLM.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys


def judge(words: list[str]) -> dict[str, str | None]:
    errors = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        try:
            import vllm

            try:
                from vllm.entrypoints.openai.cli_args import make_arg_parser, validate_parsed_serve_args
            except ImportError:
                from vllm.entrypoints.common.cli_args import make_arg_parser, validate_parsed_serve_args
            from vllm.utils.argparse_utils import FlexibleArgumentParser
        except Exception:
            return {"vllm": None}
        try:
            validate_parsed_serve_args(make_arg_parser(FlexibleArgumentParser(prog="vllm serve")).parse_args(words))
        except SystemExit:
            lines = errors.getvalue().strip().splitlines()
            return {"vllm": vllm.__version__, "refused": lines[-1] if lines else "refused without a word"}
        except Exception as error:
            return {"vllm": vllm.__version__, "refused": str(error)}
    return {"vllm": vllm.__version__, "refused": None}


if __name__ == "__main__":
    print(json.dumps(judge(sys.argv[2:])))
