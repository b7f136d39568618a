"""What `pip install osdface`, without any extra, is enough for."""

import json
import subprocess
import sys
from pathlib import Path

from PIL import Image

from osdface import faces

PROGRAM = """
import importlib.machinery, json, sys
ABSENT = {"ray", "mlflow", "deepspeed", "pyarrow", "s3fs", "deflate", "torchvision", "insightface", "skimage", "httpx"}
find = importlib.machinery.PathFinder.find_spec
importlib.machinery.PathFinder.find_spec = staticmethod(
    lambda name, *more: None if name.split(".")[0] in ABSENT else find(name, *more)
)
from jobs import console
from jobs.cli import app
from osdface import Restorer

model, picture, out = sys.argv[1:]
assert len(Restorer.load(model)(picture).faces) == 1
for source, to in ((picture, f"{out}/one"), (f"{out}/in", f"{out}/many")):
    words = ["restore", source, "--out", to, "--model", model, "--compare", to + "-both"]
    assert console.run(app, words) == 0, words
assert not ABSENT & {name.split(".")[0] for name in sys.modules}
sys.exit(console.run(app, ["restore", picture, "--out", f"{out}/x", "--model", "models:/osdface@champion", "--json"]))
"""


def test_photographs_are_restored_without_ray_mlflow_and_what_training_needs(bundle_folder, tmp_path, environment):
    picture = tmp_path / "in" / "a.png"
    picture.parent.mkdir()
    Image.fromarray(faces.photographs()["astronaut"][:300, 60:400]).save(picture)
    command = [sys.executable, "-c", PROGRAM, bundle_folder, picture, tmp_path]
    done = subprocess.run(command, env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert "model 'models:/osdface@champion' not found" in told["error"]
    assert "pip install osdface[train]" in told["error"]
    assert (tmp_path / "one" / "a.png").is_file()
    assert (tmp_path / "many-both" / "index.html").is_file()
