"""Domains of partial differential equations: signed distances, points inside, points on the boundary with normals."""

from opflow.pde.geometry.combination import Difference, Intersection, Union
from opflow.pde.geometry.domain import Geometry
from opflow.pde.geometry.mesh_domain import MeshDomain
from opflow.pde.geometry.polygon import LShape, Polygon
from opflow.pde.geometry.primitives import Ball, Box, Disc, Interval
from opflow.pde.geometry.space_time import SpaceTime

__all__ = [
    "Ball",
    "Box",
    "Difference",
    "Disc",
    "Geometry",
    "Intersection",
    "Interval",
    "LShape",
    "MeshDomain",
    "Polygon",
    "SpaceTime",
    "Union",
]
