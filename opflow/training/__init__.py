"""Training as a generator, and checkpoints that continue it bit for bit."""

from opflow.training.checkpoint import load_checkpoint, save_checkpoint
from opflow.training.interruption import Interruption
from opflow.training.loop import evaluate, fit
from opflow.training.quasi_newton import SelfScaledBroyden
from opflow.training.record import Record, Start
from opflow.training.step import TrainingDiverged

__all__ = [
    "Interruption",
    "Record",
    "SelfScaledBroyden",
    "Start",
    "TrainingDiverged",
    "evaluate",
    "fit",
    "load_checkpoint",
    "save_checkpoint",
]
