"""Section 3.1 and eq. 1 and 2, at the timestep of the published program."""

import pytest
import torch
from diffusers import DDIMScheduler

from osdface import presets
from osdface.diffusion import forward_diffusion, one_step


def test_schedule_at_the_fixed_timestep():
    preset = presets.preset("sd21")
    assert preset.timestep == 399
    assert presets.preset("tiny").scheduler == preset.scheduler
    scheduler = DDIMScheduler(**preset.scheduler)
    assert float(scheduler.alphas_cumprod[399]) == pytest.approx(0.42608613, abs=1e-7)


def test_one_step_inverts_forward_diffusion_and_is_eq_2():
    alpha_bar = torch.tensor(0.42608613)
    z, noise = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    noised = forward_diffusion(z, noise, alpha_bar)
    torch.testing.assert_close(noised, 0.65275270 * z + 0.75757104 * noise, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(one_step(noised, noise, alpha_bar), z, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        one_step(z, noise, alpha_bar), 1.53197360 * (z - 0.75757104 * noise), atol=1e-5, rtol=1e-5
    )


def test_a_timestep_for_each_picture_agrees_with_the_scheduler():
    scheduler = DDIMScheduler(**presets.preset("sd21").scheduler)
    z, noise, t = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2), torch.tensor([0, 399, 999])
    expected = scheduler.add_noise(z, noise, t)
    torch.testing.assert_close(forward_diffusion(z, noise, scheduler.alphas_cumprod[t]), expected)
