"""Problems: equations with their inputs, their unknowns and a classical solver."""

from opflow.problems.acoustic_waveform import AcousticWaveform
from opflow.problems.advection import Advection
from opflow.problems.allen_cahn import AllenCahn
from opflow.problems.antiderivative import Antiderivative
from opflow.problems.burgers import Burgers
from opflow.problems.cavity_scattering import CavityScattering
from opflow.problems.darcy import Darcy
from opflow.problems.diffusion_reaction import DiffusionReaction
from opflow.problems.disc_tomography import DiscTomography
from opflow.problems.electrode_calibration import Calibration, calibrate
from opflow.problems.electrode_tomography import ElectrodeTomography
from opflow.problems.elliptic_operators import EllipticOperators
from opflow.problems.fitzhugh_nagumo import FitzHughNagumo
from opflow.problems.helmholtz import Helmholtz
from opflow.problems.impedance_tomography import ImpedanceTomography
from opflow.problems.kdv import KortewegDeVries
from opflow.problems.kuramoto_sivashinsky import KuramotoSivashinsky
from opflow.problems.navier_stokes import NavierStokes
from opflow.problems.nonlinear_ode import NonlinearODE
from opflow.problems.open_scattering import OpenScattering
from opflow.problems.pendulum import Pendulum
from opflow.problems.pipe_flow import PipeFlow
from opflow.problems.poisson import Poisson
from opflow.problems.radiative_transport import RadiativeTransport
from opflow.problems.schroedinger import Schroedinger
from opflow.problems.tank_phantoms import TankPhantoms

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
