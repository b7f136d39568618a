"""Adapters that are added to the weights compute what peft's own do."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners import lora
from torch import nn

from osdface.lora import lora_config
from osdface.presets import LoRAShape

TARGETS = ["conv", "wide", "one", "linear"]


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.wide = nn.Conv2d(8, 40, 3, padding=1)  # more outputs than three ranks: peft's own way
        self.one = nn.Conv2d(40, 6, 1)
        self.linear = nn.Linear(6, 5, bias=False)

    def forward(self, x):
        return self.linear(self.one(self.wide(self.conv(x))).mean((2, 3)))


def adapted(config: LoraConfig) -> nn.Module:
    torch.manual_seed(0)
    model = get_peft_model(Layers(), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    return model


@pytest.fixture
def both():
    ours = adapted(lora_config(LoRAShape(rank=8, alpha=4, targets=TARGETS)))
    plain = adapted(LoraConfig(r=8, lora_alpha=4, target_modules=TARGETS))
    plain.load_state_dict(ours.state_dict())
    return ours, plain


def test_the_same_numbers_and_gradients(both):
    x, made = torch.randn(4, 3, 9, 9), []
    for model in both:
        out = model(x)
        out.square().sum().backward()
        made.append([out, *(p.grad for p in model.parameters() if p.requires_grad)])
    assert len(made[0]) == 1 + 2 * len(TARGETS)
    for one, other in zip(*made, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_the_layer_runs_once_unless_the_rank_is_low(both):
    calls = []
    for layer in both[0].modules():
        if isinstance(layer, lora.Conv2d | lora.Linear):
            layer.lora_A["default"].register_forward_hook(lambda *_: calls.append(1))
    both[0](torch.randn(2, 3, 9, 9))
    assert len(calls) == 1


def test_switched_off_merged_and_copied(both):
    model, x = both[0], torch.randn(2, 3, 9, 9)
    out = model(x)
    torch.testing.assert_close(copy.deepcopy(model)(x), out)
    with model.disable_adapter():
        torch.testing.assert_close(model(x), Layers.forward(model.base_model.model, x))
        assert not torch.allclose(model(x), out)
    torch.testing.assert_close(model.merge_and_unload()(x), out, rtol=1e-4, atol=1e-4)
