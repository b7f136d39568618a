from importlib.resources import files

import cv2
import numpy as np
import pytest
import skimage.data


@pytest.fixture(scope="session")
def photographs() -> dict[str, np.ndarray]:
    """Two real photographs, 512 x 512 uint8 RGB, by name."""
    crowd = cv2.imread(str(files("insightface") / "data" / "images" / "t1.jpg"))[..., ::-1]
    return {"astronaut": skimage.data.astronaut(), "crowd": np.ascontiguousarray(crowd[150:662, 400:912])}


@pytest.fixture(scope="session")
def face(photographs) -> np.ndarray:
    """A face of 128 x 128 pixels, uint8 RGB."""
    return cv2.resize(photographs["astronaut"][:256, 100:356], (128, 128), interpolation=cv2.INTER_AREA)
