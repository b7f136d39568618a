"""osdface profile: what the restorer costs, part by part, as in the paper's table 3."""

from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from jobs import console
from osdface.errors import UsageError

ROWS = {
    "VAE encoder": "vae_encoder",
    "VAE decoder": "vae_decoder",
    "VAE": "vae",
    "UNet, LoRA merged": "unet",
    "visual representation embedder": "vre",
    "prompt adapter": "adapter",
    "all": "total",
}
DTYPES = ("float32", "bfloat16", "float16")


def profile(
    preset: Annotated[str, typer.Option(help="The architecture: sd21 or tiny.")] = "sd21",
    measure: Annotated[
        bool, typer.Option("--measure", help="Also run it with random weights: seconds by part, peak memory.")
    ] = False,
    device: Annotated[str, typer.Option(help="Where --measure runs: cpu, cuda, cuda:1, ...")] = "cpu",
    dtype: Annotated[str, typer.Option(help="What --measure computes in: " + ", ".join(DTYPES) + ".")] = "float32",
    batch: Annotated[int, typer.Option(min=1, help="Pictures in a pass of --measure.")] = 1,
    repeat: Annotated[int, typer.Option(min=1, help="Passes of --measure whose median counts, after a first.")] = 3,
) -> dict[str, Any]:
    """Count the restorer's parameters and multiply-accumulates by part, and measure its time and memory."""
    if dtype not in DTYPES:
        raise UsageError(f"--dtype {dtype}: known are {', '.join(DTYPES)}")
    import torch

    from osdface import presets
    from osdface import profile as profiling

    try:
        found = torch.device(device).type == "cpu" or torch.zeros(1, device=device).numel() == 1
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise UsageError(f"--device {device}: {str(error).splitlines()[0]}") from None
    shape = presets.preset(preset)
    result = profiling.count(shape)
    if measure and found:
        result["measured"] = profiling.measure(shape, device, dtype, batch, repeat)
    _show(result)
    return result


def _show(result: dict[str, Any]) -> None:
    size, counted, measured = result["size"], result["parameters"], result.get("measured")
    table = Table(
        title=f"{result['preset']} at {size} x {size} pixels", title_justify="left", box=box.SIMPLE_HEAD, expand=False
    )
    table.add_column("part")
    heads = ["parameters, M", "GMACs, convolutions and linear layers", "GMACs, attention too"]
    for head in heads + (["seconds"] if measured else []):
        table.add_column(head, justify="right")
    for label, name in ROWS.items():
        numbers = [_scaled(counted.get(name), 1e6), *(_scaled(way[name], 1e9) for way in result["macs"].values())]
        if measured:
            numbers.append(f"{measured['seconds'][name]:.3f}" if name in measured["seconds"] else "")
        table.add_row(label, *numbers)
    lora = result["lora"]
    table.add_row("LoRA, if not merged", _scaled(lora["parameters"], 1e6), _scaled(lora["macs"], 1e9), "")
    console.show(table)
    seen = _scaled(result["counted_parameters"], 1e6)
    console.say(f"Without GroupNorm and the dictionary, as common counters have it: {seen} M parameters.")
    if measured:
        console.say(
            f"Batch {measured['batch']}, {measured['dtype']} on {measured['device']}, {measured['threads']} threads, "
            f"peak memory {measured['peak_memory'] / 2**30:.2f} GiB."
        )


def _scaled(number: int | None, unit: float) -> str:
    return "" if number is None else f"{number / unit:.3f}"


def register(app: typer.Typer) -> None:
    """Add the command."""
    console.command(app, "profile", "osdface profile --preset sd21 --measure")(profile)
