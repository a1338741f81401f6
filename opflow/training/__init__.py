"""Training as a generator, and checkpoints that continue it bit for bit."""

from opflow.training.checkpoint import load_checkpoint, save_checkpoint
from opflow.training.covariance import Covariance, gauss_newton_covariance
from opflow.training.interruption import Interruption
from opflow.training.jacobian import LeastSquares
from opflow.training.levenberg_marquardt import LevenbergMarquardt
from opflow.training.limited_memory import LimitedMemoryBFGS
from opflow.training.loop import evaluate, fit
from opflow.training.quasi_newton import SelfScaledBroyden
from opflow.training.record import Record, Start
from opflow.training.step import TrainingDiverged
from opflow.training.weighting import CausalWeights, GradientNormBalance, StateSelection, TangentKernelBalance

__all__ = [
    "CausalWeights",
    "Covariance",
    "GradientNormBalance",
    "Interruption",
    "LeastSquares",
    "LevenbergMarquardt",
    "LimitedMemoryBFGS",
    "Record",
    "SelfScaledBroyden",
    "Start",
    "StateSelection",
    "TangentKernelBalance",
    "TrainingDiverged",
    "evaluate",
    "fit",
    "gauss_newton_covariance",
    "load_checkpoint",
    "save_checkpoint",
]
