"""Low-rank adapters, by peft: of the generator's UNet and of the latent discriminator."""

from typing import Any

import torch.nn.functional as F
from peft import LoraConfig
from peft.tuners import lora
from torch import Tensor, nn

from osdface.presets import LoRAShape


class _InWeights:
    """A LoRA layer that adds B A to its weights and runs once, where peft adds B (A x) to what the frozen layer makes.

    The same numbers but for rounding. Training then has a gradient of the whole weight to make, as much work as the
    layer's own pass, and no passes through A and B: the less where three times the rank is more than the outputs.
    """

    def forward(self, x: Tensor, *arguments: Any, **options: Any) -> Tensor:
        layer: Any = self
        base, names = layer.get_base_layer(), [name for name in layer.active_adapters if name in layer.lora_A]
        plain = arguments or options or layer.disable_adapters or layer.merged
        if plain or not names or 3 * max(layer.r[name] for name in names) < len(base.weight):
            return super().forward(x, *arguments, **options)  # type: ignore[misc]
        weight = base.weight + sum(layer.get_delta_weight(name) for name in names)
        return base._conv_forward(x, weight, base.bias) if weight.ndim == 4 else F.linear(x, weight, base.bias)


class Conv2d(_InWeights, lora.Conv2d):
    pass


class Linear(_InWeights, lora.Linear):
    pass


def lora_config(shape: LoRAShape) -> LoraConfig:
    """peft's configuration of a preset's adapters; B starts at zero, so an untrained adapter changes nothing."""
    config = LoraConfig(r=shape.rank, lora_alpha=shape.alpha, target_modules=list(shape.targets))
    config._register_custom_module({nn.Conv2d: Conv2d, nn.Linear: Linear})
    return config
