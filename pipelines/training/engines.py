"""A module under DeepSpeed, and all that its training keeps, as whole fp32 tensors whatever the partitioning."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from pipelines.training.config import Optimizer, TrainConfig

BUCKET = 500_000_000  # DeepSpeed's own limit of gradients that are reduced together; smaller models need no such buffer
PERSISTENT = 100_000  # DeepSpeed's own size, in elements, of parameters that ZeRO 3 leaves whole
MOMENTS: dict[str, tuple[str, ...]] = {"adam": ("exp_avg", "exp_avg_sq"), "adamw": ("exp_avg", "exp_avg_sq"), "sgd": ()}
AVERAGE = "ema"  # the moving average stands among the optimizer's moments: partitioned, gathered and kept as they are
SCALE = ("cur_scale", "cur_iter", "cur_hysteresis", "last_overflow_iter")  # of fp16's loss scaler

Position = dict[str, float]


def zero_stage(config: TrainConfig) -> int:
    """The ZeRO stage in force: DeepSpeed's half precision partitions the fp32 weights, as stage 1 does."""
    return config.zero_stage if config.precision == "fp32" else max(config.zero_stage, 1)


class Engine:
    """A DeepSpeed engine over a module's trainable parameters, for a phase of `steps`.

    A step function calls `engine(...)` or `engine.module(...)`, `backward(loss)` and `step()` for every micro-batch.
    norm: of the gradient of the last optimisation step, before clipping. kept: parameters' moments and moving average
    by name ("exp_avg", "exp_avg_sq", "ema") and parameter, and where the phase stands, to go on from.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: Optimizer,
        config: TrainConfig,
        steps: int,
        kept: Mapping[tuple[str, nn.Parameter], Tensor] | None = None,
        position: Position | None = None,
    ):
        import deepspeed

        kept, position = kept or {}, position or {}
        self.parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.zero, self.average = zero_stage(config), config.ema
        self.norm: float | None = None
        self.moments = MOMENTS[optimizer.name]
        # Half precision would begin from rounded weights.
        whole = {p: p.detach().clone() for p in self.parameters} if config.precision != "fp32" else {}
        done = int(position.get("schedule", 0))
        # DeepSpeed walks through its module several times a step; only partitions and casts need the frozen part.
        walked = module if self.zero == 3 or whole else nn.ParameterList(self.parameters)
        self.engine = deepspeed.initialize(
            model=walked,
            model_parameters=self.parameters,
            optimizer=optimizer.build(module),
            lr_scheduler=lambda built: LambdaLR(built, lambda step: optimizer.factor(done + step, steps)),
            config=settings(config, optimizer, sum(p.numel() for p in self.parameters)),
        )[0]
        if not self.zero and self.engine.world_size == 1:  # DeepSpeed would copy all gradients there and back
            self.engine.enable_backward_allreduce = False
        self.module, self.done = module, done
        self.base: torch.optim.Optimizer = self.engine.optimizer.optimizer if self.zero else self.engine.optimizer
        self._begin(position.get("steps", 0.0))
        for parameter, value in whole.items():
            self._put(parameter, None, value)
        mine = {id(parameter) for parameter in self.parameters}
        for (name, parameter), value in kept.items():
            if id(parameter) in mine and name in self.kept():
                self._put(parameter, name, value)
        for name in SCALE:
            if name in position:
                setattr(self._scaler, name, type(getattr(self._scaler, name))(position[name]))

    def __call__(self, *inputs: Any) -> Any:
        return self.module(*inputs)

    def backward(self, loss: Tensor) -> None:
        """Add this micro-batch's share of the gradients."""
        if self.zero:  # DeepSpeed's own forward does it, by which ZeRO 3 tells micro-batches apart
            self.engine.optimizer.clear_backward_seen_flag()
        self.engine.backward(loss)

    def step(self) -> None:
        """After the last micro-batch of an optimisation step: move the weights and their average."""
        last = self.engine.is_gradient_accumulation_boundary()
        if last and not self.zero:
            gradients = [p.grad for p in self.parameters if p.grad is not None]
            self.norm = float(torch.nn.utils.get_total_norm(gradients))
        self.engine.step()
        if not last:
            return
        if self.zero:
            self.norm = float(self.engine.get_global_grad_norm())
        if self.average:
            averages = [self.base.state[weights][AVERAGE] for weights in self._weights()]
            torch._foreach_lerp_(averages, [w.detach() for w in self._weights()], 1 - self.average)

    @property
    def skipped(self) -> bool:
        """Whether fp16's loss scaler left the last step out, as it does while it looks for a scale."""
        return self._scaler is not None and bool(self.engine.optimizer.overflow)

    @property
    def lr(self) -> float:
        """The learning rate of the next step; with LoRA+ that of A."""
        return self.base.param_groups[0]["lr"]

    def position(self) -> Position:
        """Where the optimizer, its schedule and fp16's scale stand."""
        found: Position = {"steps": self._steps(), "schedule": self.done + self.engine.lr_scheduler.last_epoch}
        return found | {n: float(getattr(self._scaler, n)) for n in SCALE if self._scaler and hasattr(self._scaler, n)}

    def kept(self) -> tuple[str, ...]:
        """Names of what a checkpoint keeps of every parameter."""
        return (*self.moments, AVERAGE) if self.average else self.moments

    def whole(self, parameter: nn.Parameter, name: str | None = None) -> Tensor:
        """The parameter's fp32 weights, or what is kept of it under a name, gathered. Every rank calls it."""
        if not self.zero:
            return (self.base.state[parameter][name] if name else parameter).detach()
        from deepspeed import utils

        if name:
            return utils.safe_get_full_optimizer_state(parameter, name)
        return utils.safe_get_full_fp32_param(parameter)

    def close(self) -> None:
        """End it. With ZeRO 3 or half precision the module is no use afterwards."""
        self.engine.destroy()

    @property
    def _scaler(self) -> Any:
        return self.engine.optimizer.loss_scaler if self.engine.fp16_enabled() else None

    def _weights(self) -> list[Tensor]:
        """The fp32 tensors that the optimizer moves on this rank."""
        if not self.zero:
            return list(self.parameters)
        flat = "fp32_partitioned_groups_flat" if self.zero == 3 else "single_partition_of_fp32_groups"
        return getattr(self.engine.optimizer, flat)

    def _begin(self, steps: float) -> None:
        """Give the optimizer the state that it would make at its first step."""
        for weights in self._weights():
            state = self.base.state[weights]
            for name in self.moments:
                state[name] = torch.zeros_like(weights)
            if self.moments:
                state["step"] = torch.tensor(float(steps))
            if self.average:
                state[AVERAGE] = weights.detach().clone()
        if self.zero in (1, 2):
            self.engine.optimizer._lazy_init_hp_params_optimizer_state()

    def _steps(self) -> float:
        state = self.base.state[self._weights()[0]]
        return float(state["step"]) if self.moments else 0.0

    def _put(self, parameter: nn.Parameter, name: str | None, value: Tensor) -> None:
        from deepspeed import comm, utils

        if not self.zero:
            (self.base.state[parameter][name] if name else parameter.data).copy_(value)
        elif self.zero < 3:
            parameter.set_full_hp_param(value.to(torch.float32), name)  # type: ignore[attr-defined]
        else:
            share = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
            padded = torch.zeros(share * comm.get_world_size())
            padded[: value.numel()] = value.flatten()
            mine = padded[comm.get_rank() * share :][:share]
            if name:
                utils.safe_set_local_optimizer_state(parameter, mine, name)
            else:
                utils.safe_set_local_fp32_param(parameter, mine)


def settings(config: TrainConfig, optimizer: Optimizer, trained: int) -> dict[str, Any]:
    """DeepSpeed's configuration of an engine over `trained` elements."""
    cpu = {"device": "cpu", "pin_memory": True}
    zero: dict[str, Any] = {"stage": zero_stage(config), "reduce_bucket_size": min(BUCKET, max(trained, 1))}
    if config.offload != "none":
        zero["offload_optimizer"] = cpu
    if config.offload == "parameters":
        zero["offload_param"] = cpu
    if zero["stage"] == 3:
        zero["stage3_param_persistence_threshold"] = PERSISTENT
    return {
        "train_micro_batch_size_per_gpu": config.micro_batch,
        "gradient_accumulation_steps": config.accumulation,
        "gradient_clipping": optimizer.clip,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # torch's own does offloaded steps too
        "bf16": {"enabled": config.precision == "bf16"},
        "fp16": {"enabled": config.precision == "fp16"},
        "steps_per_print": 10**12,
    }
