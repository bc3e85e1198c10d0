"""`vplan catalog`: the models and cards that planning works with offline."""

from __future__ import annotations

from typing import Annotated

import typer

from planner.cli.output import Output, write

app = typer.Typer(
    help="The models and cards that vplan knows without a network.", no_args_is_help=True, rich_markup_mode=None
)
models = typer.Typer(help="Models.", no_args_is_help=True, rich_markup_mode=None)
gpus = typer.Typer(help="Cards.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(models, name="models")
app.add_typer(gpus, name="gpus")

ModelCatalog = Annotated[
    list[str] | None, typer.Option("--model-catalog", help="More models, a YAML file; repeatable.", show_default=False)
]
HardwareCatalog = Annotated[
    list[str] | None, typer.Option("--hardware-catalog", help="More GPUs, a YAML file; repeatable.", show_default=False)
]


@models.command("list")
def list_models(model_catalog: ModelCatalog = None, output: Output = None) -> None:
    """Every model id with its architecture. Example: vplan catalog models list"""
    from planner.sources.model_catalog import load_model_catalog

    catalog = load_model_catalog(model_catalog or ())
    rows = [
        (files.name, ", ".join(files.config.get("architectures", ())), _quantization(files.config))
        for files in catalog.all()
    ]
    write(_columns([("id", "architecture", "quantization"), *rows]), output)


@models.command("show")
def show_model(model_id: str, model_catalog: ModelCatalog = None, output: Output = None) -> None:
    """One entry as YAML. Example: vplan catalog models show Qwen/Qwen2.5-7B-Instruct"""
    from planner.sources.model_catalog import load_model_catalog

    write(load_model_catalog(model_catalog or ()).text(model_id), output)


@gpus.command("list")
def list_gpus(hardware_catalog: HardwareCatalog = None, output: Output = None) -> None:
    """Every card with its usable memory. Example: vplan catalog gpus list"""
    from planner.sources.hardware_catalog import load_hardware_catalog
    from planner.units import format_gib

    header = ("name", "aliases", "memory", "known by", "capability")
    rows = [
        (
            gpu.name,
            ", ".join(gpu.aliases),
            format_gib(gpu.total_memory_bytes),
            gpu.memory_evidence,
            ".".join(map(str, gpu.compute_capability)),
        )
        for gpu in load_hardware_catalog(hardware_catalog or ()).all()
    ]
    write(_columns([header, *rows]), output)


@gpus.command("show")
def show_gpu(name: str, hardware_catalog: HardwareCatalog = None, output: Output = None) -> None:
    """One entry as YAML. Example: vplan catalog gpus show l20"""
    from planner.sources.hardware_catalog import load_hardware_catalog

    write(load_hardware_catalog(hardware_catalog or ()).text(name), output)


def _quantization(config: dict[str, object]) -> str:
    section = config.get("quantization_config") or config.get("compression_config")
    return str(section.get("quant_method", "")) if isinstance(section, dict) else ""


def _columns(rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
