"""Problems: equations with their inputs, their unknowns and a classical solver."""

from opflow.problems.antiderivative import Antiderivative
from opflow.problems.burgers import Burgers
from opflow.problems.darcy import Darcy
from opflow.problems.navier_stokes import NavierStokes
from opflow.problems.nonlinear_ode import NonlinearODE
from opflow.problems.pendulum import Pendulum

__all__ = ["Antiderivative", "Burgers", "Darcy", "NavierStokes", "NonlinearODE", "Pendulum"]
