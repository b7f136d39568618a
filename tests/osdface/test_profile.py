"""Counts against figures measured elsewhere on the published architecture, and against a count done by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from osdface import profile
from osdface.presets import preset

# Millions of parameters and GMACs at 512 pixels of the published architecture, counted on diffusers' own modules.
PARAMETERS = {"vae": 83.653863, "unet": 865.910724, "vre": 29.172416, "adapter": 0.394496, "total": 979.131}
CONV_LINEAR = {"unet": 209.18 + 129.92, "vre": 99.5, "adapter": 0.03, "total": 2219.8}
WITH_ATTENTION = {"vae_encoder": 536.85 + 21.47, "vae_decoder": 1235.78 + 21.47, "unet": 402.1, "total": 2317.4}
PAPER = 978.4  # M, table 3


@pytest.fixture(scope="module")
def sd21():
    return profile.count(preset("sd21"))


def test_parameters_of_the_published_size(sd21):
    counted = {name: number / 1e6 for name, number in sd21["parameters"].items()}
    assert counted == pytest.approx(PARAMETERS, rel=1e-5)
    assert counted["total"] == pytest.approx(PAPER, rel=2e-3)
    assert sd21["counted_parameters"] / 1e6 == pytest.approx(PAPER, abs=0.05)


def test_multiply_accumulates_of_the_published_size(sd21):
    for way, expected in (("conv_linear", CONV_LINEAR), ("with_attention", WITH_ATTENTION)):
        counted = {name: sd21["macs"][way][name] / 1e9 for name in expected}
        assert counted == pytest.approx(expected, rel=2e-3, abs=0.005)


def test_lora_that_is_not_merged_costs_what_it_should(sd21):
    assert sd21["lora"]["parameters"] / 1e6 == pytest.approx(16.217, rel=2e-3)
    assert (sd21["macs"]["conv_linear"]["vae"] + sd21["macs"]["conv_linear"]["unet"] + sd21["lora"]["macs"]) / 1e9 == (
        pytest.approx(2132.3, rel=2e-3)  # "2,132 G" of table 3
    )


def test_macs_of_single_layers_are_those_done_by_hand():
    counter = profile.MACs()
    with counter, counter.step("a"):
        nn.Conv2d(3, 8, 3, padding=1, groups=1)(torch.zeros(2, 3, 5, 7))
        nn.Conv2d(4, 8, 3, groups=2)(torch.zeros(1, 4, 3, 3))
    with counter, counter.step("b"):
        nn.Linear(6, 4)(torch.zeros(5, 6))
        F.scaled_dot_product_attention(torch.zeros(2, 3, 4, 8), torch.zeros(2, 3, 5, 8), torch.zeros(2, 3, 5, 6))
        torch.zeros(2, 3) @ torch.zeros(3, 4)
    assert counter.linear == {"a": 2 * 8 * 5 * 7 * 3 * 9 + 8 * 2 * 9, "b": 5 * 6 * 4}
    assert counter.products == {"b": 2 * 3 * 4 * 5 * (8 + 6) + 2 * 3 * 4}


def test_measuring_runs_every_part_and_walks_as_the_generator_does():
    tiny = preset("tiny")
    measured = profile.measure(tiny, batch=2, repeat=1)
    assert set(measured["seconds"]) == {*profile.STEPS, "total"}
    assert 0 < sum(measured["seconds"][step] for step in profile.STEPS) <= measured["seconds"]["total"]
    assert measured["peak_memory"] > 4 * 10**7  # torch alone
    generator = profile.fresh_generator(tiny)
    images = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.inference_mode():
        assert torch.equal(profile.walk(generator, images, profile.MACs().step), generator(images).image)
