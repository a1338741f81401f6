"""The networks of the table of inverse problems, built for the measurements and the grid of a problem."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from benchmarks.inverse_questions import Question, seen
from opflow.models import NIO, EncoderDecoder, KernelRidge, StackedDeepONet

# What makes a model: whether it wants the number of measurements first.
BUILDERS: dict[str, tuple[Callable[..., nn.Module], bool]] = {
    "NIO": (NIO.build, False),
    "NIO.published": (NIO.published, False),
    "StackedDeepONet": (StackedDeepONet.build, True),
    "EncoderDecoder": (EncoderDecoder.build, True),
}


def built(question: Question, settings: Mapping[str, Any], reconstruction: KernelRidge | None = None) -> nn.Module:
    """The model of the settings, its units taken from the training set.

    In the settings ``descriptors = true`` stands for the problem's own, and "none" for None.
    """
    options = {key: None if value == "none" else value for key, value in settings["model"].items()}
    build, counted = BUILDERS[options.pop("build")]
    L, channels, sensors = question.shape
    if options.get("descriptors") is True:
        options["descriptors"] = question.problem.descriptors.float().tolist()
    elif "descriptors" in options:
        options["descriptors"] = None
    if reconstruction is not None:
        options["reconstruction"] = reconstruction
    first = (L, sensors, channels, question.grid) if counted else (sensors, channels, question.grid)
    model = build(*first, **options)
    batch = question.train.read(range(len(question.train)))
    model.scale.fit(seen(settings, batch.input), batch.target)
    return model
