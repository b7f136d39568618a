"""What every training stage shares in a worker: DeepSpeed engines, data order, checkpoints, resume, reporting.

A stage is a sequence of phases; a phase is a number of steps over some modules, an engine for each. Stages live in
train_base.py, train_vre.py and train_osd.py and know nothing of Ray; launch.py starts the workers.
"""

from pipelines.training.config import Duration, LoRAOptimizer, Optimizer, Progress, TrainConfig, Validation
from pipelines.training.stage import Metrics, Phase, Stage, Step, frozen

__all__ = [
    "Duration",
    "LoRAOptimizer",
    "Metrics",
    "Optimizer",
    "Phase",
    "Progress",
    "Stage",
    "Step",
    "TrainConfig",
    "Validation",
    "frozen",
]
