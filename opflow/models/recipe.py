"""A model from its recipe: the nested plain values that `build` leaves and a checkpoint keeps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from opflow.layers.normalizer import Normalized, Normalizer
from opflow.models.deeponet import DeepONet
from opflow.models.direction_network import DirectionNetwork
from opflow.models.encoder_decoder import EncoderDecoder
from opflow.models.fno import FNO
from opflow.models.galerkin_transformer import GalerkinTransformer
from opflow.models.graph_network import GraphNetwork
from opflow.models.kernel_ridge import KernelRidge
from opflow.models.local_fno import LocalFNO
from opflow.models.mgno import MgNO
from opflow.models.multigrid_network import MultigridNetwork, TunedCycle
from opflow.models.nio import NIO
from opflow.models.pinn import PINN
from opflow.models.rollout import Rollout
from opflow.models.stacked_deeponet import StackedDeepONet
from opflow.models.unet import UNet

MODELS: dict[str, Any] = {
    "DeepONet": DeepONet,
    "DirectionNetwork": DirectionNetwork,
    "EncoderDecoder": EncoderDecoder,
    "FNO": FNO,
    "GalerkinTransformer": GalerkinTransformer,
    "GraphNetwork": GraphNetwork,
    "KernelRidge": KernelRidge,
    "LocalFNO": LocalFNO,
    "MgNO": MgNO,
    "MultigridNetwork": MultigridNetwork,
    "NIO": NIO,
    "PINN": PINN,
    "StackedDeepONet": StackedDeepONet,
    "TunedCycle": TunedCycle,
    "UNet": UNet,
}


def build_model(recipe: Mapping[str, Any]) -> nn.Module:
    """Build the model that a recipe describes, with fresh parameters; only opflow's own models, never an import path.

    >>> build_model(FNO.build((8, 8), 1, 1, 4).recipe).recipe["n_modes"]
    [8, 8]
    """
    if not isinstance(recipe, Mapping) or "model" not in recipe:
        raise ValueError(
            f"the recipe is {recipe!r}; expected a mapping with the key 'model', as model.recipe holds after a build."
        )
    name = recipe["model"]
    if name == "Normalized":
        channels = recipe["channels"]
        points = recipe.get("points", ())  # recipes of version 0.1 have no values at points
        normalizers = {
            part: None if n is None else Normalizer([0.0] * n, [1.0] * n, points=part in points)
            for part, n in channels.items()
        }
        return Normalized(
            build_model(recipe["inner"]), normalizers["input"], normalizers["output"], normalizers["coords"]
        )
    if name not in MODELS and name != "Rollout":
        raise ValueError(
            f"the recipe names the model {name!r}, which this opflow does not have; it has {', '.join(sorted(MODELS))}. Pass build= to make it yourself."
        )
    values = {key: value for key, value in recipe.items() if key != "model"}
    try:
        if name == "Rollout":
            return Rollout(build_model(values.pop("inner")), **values)
        return MODELS[name].build(**values)
    except TypeError as error:
        raise ValueError(
            f"the recipe of {name} does not fit this version of opflow ({error}); pass build= to make the model yourself."
        ) from error
