"""What tests of metrics share: a machine without weights but those of packages, real pictures and bad copies."""

import cv2
import numpy as np
import pytest
import torch

from osdface import faces


@pytest.fixture
def folder(home, tmp_path, monkeypatch):
    """Where weight files are looked for first; nothing lies there, nor in the other places outside packages."""
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    (home / "weights").mkdir(parents=True)
    return home / "weights"


@pytest.fixture(scope="session")
def photographs() -> np.ndarray:
    """Two photographs of people, (2, 288, 384, 3) uint8 RGB."""
    found = faces.photographs()
    return np.stack([found["astronaut"][:288, :384], found["t1"][200:488, 300:684]])


@pytest.fixture(scope="session")
def spoilt(photographs) -> np.ndarray:
    """The same, blurred and noisy."""
    noise = np.random.default_rng(0).normal(0, 12, photographs.shape)
    blurred = np.stack([cv2.GaussianBlur(picture, (0, 0), 2) for picture in photographs])
    return (blurred + noise).clip(0, 255).astype(np.uint8)
