"""Which of a script's commands starts vLLM, and with what: `vllm serve`, its module form, docker, Xinference."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from planner.errors import InputError, UnsupportedError
from planner.serve.shell import Script, split_script

Launcher = Literal["vllm", "api_server", "docker", "xinference"]

_ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)
_WRAPPERS = ("nohup", "exec", "time", "command", "setsid", "uv", "run", "poetry", "pipenv", "conda")
_API_SERVERS = ("vllm.entrypoints.openai.api_server", "vllm.entrypoints.api_server")
_SWITCH_NAMES = """
--detach -d --interactive -i --tty -t -it -ti -dit -itd -tid -td -id --rm --privileged --init --no-healthcheck
--oom-kill-disable --publish-all -P --read-only --sig-proxy --disable-content-trust --quiet -q --replace
"""
_DOCKER_SWITCHES = frozenset(_SWITCH_NAMES.split())


class Launch(Struct, frozen=True):
    """`argv`: what comes after `vllm serve` (or after the module, or the image). `image`: of a container."""

    launcher: Launcher
    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = ()
    image: str | None = None

    @property
    def image_version(self) -> str | None:
        """The vLLM release that a tag such as `vllm/vllm-openai:v0.26.0-x86_64` names."""
        match = re.search(r"vllm[^:/]*:v?([0-9]+\.[0-9]+\.[0-9]+)", self.image or "")
        return match[1] if match else None


def find_launch(script: Script) -> Launch:
    """The one command of the script that starts vLLM, with the environment set before it.

    Raises InputError where there is none or more than one.
    """
    exported: dict[str, str] = {}
    found: list[Launch] = []
    for words in script.commands:
        if words[0] == "export":
            exported |= _assignments(words[1:])[0]
        launch = launch_of(words)
        if launch is not None:
            found.append(replace(launch, env=tuple((exported | dict(launch.env)).items())))
    if not found:
        raise InputError(
            "--command: no vLLM launch in it (vllm serve, python -m ...api_server, docker run IMAGE, xinference launch)"
        )
    if len(found) > 1:
        raise InputError(f"--command: {len(found)} launches in it; give one")
    return found[0]


def launch_of(words: Sequence[str]) -> Launch | None:
    """What one simple command starts; None for a command that starts no vLLM."""
    env, rest = _assignments(words)
    while rest:
        program = os.path.basename(rest[0])
        if program == "env" or program == "sudo":
            rest = rest[1:]
            while rest and rest[0].startswith("-"):
                rest = rest[2:] if rest[0] in ("-u", "-g") else rest[1:]
        elif program in _WRAPPERS:
            rest = rest[1:]
        else:
            break
        more, rest = _assignments(rest)
        env |= more
    launch = _started(rest)
    return None if launch is None else replace(launch, env=tuple((env | dict(launch.env)).items()))


def _started(words: Sequence[str]) -> Launch | None:
    if not words:
        return None
    program = os.path.basename(words[0])
    if program == "vllm" and words[1:2] == ["serve"]:
        return Launch("vllm", tuple(words[2:]))
    if re.fullmatch(r"python[0-9.]*", program):
        return _python(words[1:])
    if program in ("docker", "podman", "nerdctl"):
        return _container(words)
    if program == "xinference" and words[1:2] == ["launch"]:
        return Launch("xinference", tuple(words[2:]))
    if program in ("bash", "sh", "zsh") and "-c" in (flag[:1] + flag[-1:] for flag in words[1:2]) and len(words) > 2:
        return find_launch(split_script(words[2]))
    return None


def _python(arguments: Sequence[str]) -> Launch | None:
    for index, argument in enumerate(arguments):
        if argument == "-m":
            module, rest = arguments[index + 1 : index + 2], arguments[index + 2 :]
            if module and module[0] in _API_SERVERS:
                return Launch("api_server", tuple(rest))
            return (
                Launch("vllm", tuple(rest[1:]))
                if module == ["vllm.entrypoints.cli.main"] and rest[:1] == ["serve"]
                else None
            )
        if not argument.startswith("-"):
            return None
    return None


def _container(words: Sequence[str]) -> Launch | None:
    if "run" not in words[1:3]:
        return None
    rest = list(words[words.index("run") + 1 :])
    env: dict[str, str] = {}
    entrypoint: str | None = None
    while rest and rest[0].startswith("-"):
        option, equals, value = rest.pop(0).partition("=")
        if option in _DOCKER_SWITCHES:
            continue
        if not equals:
            if not option.startswith("--") and len(option) > 2:
                option, value = option[:2], option[2:]
            elif rest:
                value = rest.pop(0)
            else:
                raise InputError(f"--command: docker option {option} has no value")
        if option in ("-e", "--env"):
            name, given, text = value.partition("=")
            if given:
                env[name] = text
        elif option == "--env-file":
            raise UnsupportedError(
                "--env-file", f"--command: the variables in --env-file {value} are not known here; write them with -e"
            )
        elif option == "--entrypoint":
            entrypoint = value
    if not rest:
        raise InputError("--command: docker run without an image")
    image, arguments = rest[0], rest[1:]
    started = (
        launch_of([entrypoint, *arguments] if entrypoint else arguments)
        if entrypoint or not _is_option(arguments)
        else None
    )
    if started is not None:
        return Launch("docker", started.argv, tuple((env | dict(started.env)).items()), image)
    if entrypoint or "vllm" not in image.lower():
        return None
    if arguments[:1] == ["serve"]:
        arguments = arguments[1:]
    return Launch("docker", tuple(arguments), tuple(env.items()), image)


def _is_option(arguments: Sequence[str]) -> bool:
    return not arguments or arguments[0].startswith("-")


def _assignments(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    env: dict[str, str] = {}
    for index, word in enumerate(words):
        match = _ASSIGNMENT.fullmatch(word)
        if not match:
            return env, list(words[index:])
        env[match[1]] = match[2]
    return env, []
