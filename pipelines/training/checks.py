"""What cannot be trained is refused before any worker starts, in one sentence; and numbers that are none, later."""

import math

import torch

from osdface import presets
from osdface.errors import UsageError, UserError
from pipelines.pairs.manifest import SHARDS, Manifest
from pipelines.store import Store
from pipelines.training.config import TrainConfig
from pipelines.training.engines import Engine
from pipelines.training.stage import Metrics, means


def refuse_configuration(config: TrainConfig) -> None:
    """Raise UsageError for a configuration whose parts do not go together."""
    on_cpu = config.gpus_per_worker == 0
    if on_cpu and config.precision != "fp32":
        raise UsageError(f"precision: {config.precision} needs GPUs; give gpus_per_worker, or fp32")
    if on_cpu and config.offload != "none":
        raise UsageError(f"offload: {config.offload} needs GPUs, whose memory it spares; give gpus_per_worker, or none")
    if config.offload == "optimizer" and config.zero_stage == 0:
        raise UsageError("offload: optimizer needs zero_stage 1, 2 or 3, at which DeepSpeed has its own optimizer")
    if config.offload == "parameters" and config.zero_stage != 3:
        raise UsageError(f"offload: parameters needs zero_stage 3, which partitions them, not {config.zero_stage}")
    if config.batch_size % config.parts:
        raise UsageError(
            f"batch_size {config.batch_size} cannot be shared by {max(config.workers, 1)} workers (workers) x "
            f"{config.accumulation} micro-batches (accumulation): make it a multiple of {config.parts}"
        )
    if config.export == "ema" and config.ema is None:
        raise UsageError("export: ema needs the average that ema keeps; give its decay, such as ema=0.999")
    if config.validation.best and not config.validation.every:
        raise UsageError(f"validation.best: {config.validation.best} is never measured; give validation.every")
    if config.workers == 0 and config.gpus_per_worker and not torch.cuda.is_available():
        raise UsageError(f"gpus_per_worker {config.gpus_per_worker:g}: this machine has no GPU that torch can use")


def refuse_data(config: TrainConfig, manifest: Manifest) -> None:
    """Raise UserError for a dataset of another size, with too few rows, or not as its manifest says."""
    preset = presets.preset(config.preset)
    if manifest.spec.size != preset.size:
        raise UserError(
            f"{config.data}: pictures of {manifest.spec.size} px, but preset '{preset.name}' works at {preset.size}; "
            f"make the pairs with --size {preset.size}"
        )
    rows = manifest.counts.splits.get("train", 0)
    if rows < config.workers:
        raise UserError(f"{config.data}: its training split has {rows} pairs, fewer than workers {config.workers}")
    if rows < config.batch_size:
        raise UserError(
            f"{config.data}: its training split has {rows} pairs, fewer than batch_size {config.batch_size}"
        )
    store = Store(config.folder)
    sizes = store.sizes(SHARDS)
    for shard in manifest.shards:
        if sizes.get(shard.name) != shard.bytes:
            raise UserError(
                f"{store.label(f'{SHARDS}/{shard.name}')}: not the {shard.bytes} bytes that manifest.json says; "
                "see osdface data verify"
            )


def refuse_nan(phase: str, step: int, metrics: Metrics, pairs: str) -> None:
    """Raise UserError naming the first metric that is not a finite number. `pairs` says what it was measured on."""
    values = means(metrics, list(metrics))
    if bool(torch.isfinite(values).all()):
        return
    name = next(name for name, value in zip(metrics, values, strict=True) if not torch.isfinite(value))
    raise UserError(
        f"{phase}/{name} is not a number at step {step} ({pairs}); the last checkpoint is kept: lower the learning rate"
    )


def refuse_infinite(phase: str, step: int, engines: dict[str, Engine], pairs: str) -> None:
    """Raise UserError where a gradient's norm is no finite number, but for the steps that fp16's scaler leaves out."""
    for name, engine in engines.items():
        if engine.norm is not None and not math.isfinite(engine.norm) and not engine.skipped:
            raise UserError(
                f"{phase}: the gradient of {name} is not finite at step {step} ({pairs}); the last checkpoint is kept: "
                "lower the learning rate, or give its optimizer a clip"
            )
