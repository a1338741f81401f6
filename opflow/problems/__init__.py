"""Problems: equations with their inputs, their unknowns and a classical solver."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from opflow.problems.advection import Advection
from opflow.problems.allen_cahn import AllenCahn
from opflow.problems.antiderivative import Antiderivative
from opflow.problems.burgers import Burgers
from opflow.problems.darcy import Darcy
from opflow.problems.diffusion_reaction import DiffusionReaction
from opflow.problems.elliptic_operators import EllipticOperators
from opflow.problems.fitzhugh_nagumo import FitzHughNagumo
from opflow.problems.helmholtz import Helmholtz
from opflow.problems.kdv import KortewegDeVries
from opflow.problems.kuramoto_sivashinsky import KuramotoSivashinsky
from opflow.problems.navier_stokes import NavierStokes
from opflow.problems.nonlinear_ode import NonlinearODE
from opflow.problems.pendulum import Pendulum
from opflow.problems.pipe_flow import PipeFlow
from opflow.problems.poisson import Poisson
from opflow.problems.schroedinger import Schroedinger

if TYPE_CHECKING:
    from opflow.problems.acoustic_waveform import AcousticWaveform
    from opflow.problems.cavity_scattering import CavityScattering
    from opflow.problems.disc_tomography import DiscTomography
    from opflow.problems.electrode_calibration import Calibration, calibrate
    from opflow.problems.electrode_tomography import ElectrodeTomography
    from opflow.problems.impedance_tomography import ImpedanceTomography
    from opflow.problems.open_scattering import OpenScattering
    from opflow.problems.radiative_transport import RadiativeTransport
    from opflow.problems.tank_phantoms import TankPhantoms

# The inverse problems, with their forward maps and adjoints, are imported on use: `--help` of a script that needs none stays quick.
_ON_USE = {
    "AcousticWaveform": "acoustic_waveform",
    "Calibration": "electrode_calibration",
    "CavityScattering": "cavity_scattering",
    "DiscTomography": "disc_tomography",
    "ElectrodeTomography": "electrode_tomography",
    "ImpedanceTomography": "impedance_tomography",
    "OpenScattering": "open_scattering",
    "RadiativeTransport": "radiative_transport",
    "TankPhantoms": "tank_phantoms",
    "calibrate": "electrode_calibration",
}

__all__ = [
    "AcousticWaveform",
    "Advection",
    "AllenCahn",
    "Antiderivative",
    "Burgers",
    "Calibration",
    "CavityScattering",
    "Darcy",
    "DiffusionReaction",
    "DiscTomography",
    "ElectrodeTomography",
    "EllipticOperators",
    "FitzHughNagumo",
    "Helmholtz",
    "ImpedanceTomography",
    "KortewegDeVries",
    "KuramotoSivashinsky",
    "NavierStokes",
    "NonlinearODE",
    "OpenScattering",
    "Pendulum",
    "PipeFlow",
    "Poisson",
    "RadiativeTransport",
    "Schroedinger",
    "TankPhantoms",
    "calibrate",
]


def __getattr__(name: str) -> Any:
    if name not in _ON_USE:
        raise AttributeError(f"opflow.problems has no {name!r}; it has {', '.join(__all__)}.")
    return getattr(import_module(f"opflow.problems.{_ON_USE[name]}"), name)
