"""Data: files of schema ``opflow/1``, foreign formats, data sets, batches, statistics and the generator of data folders.

One way through: `generate` writes a folder, `open_dataset` opens it, `FieldDataset` stacks its fields, `Batches` hands
them to training, and `channel_statistics` gives what a normalizer needs.
"""

from opflow.data.batches import Batches
from opflow.data.dataset import FieldDataset, collate
from opflow.data.formats import open_dataset
from opflow.data.generate import generate
from opflow.data.hdf5 import write_dataset
from opflow.data.readers.fresnel import ScatteringMeasurement, read_fresnel
from opflow.data.readers.ktc import TankMeasurement, read_ktc
from opflow.data.readers.nio import read_nio
from opflow.data.readers.openfwi import read_openfwi
from opflow.data.schema import DataError
from opflow.data.source import Source
from opflow.data.statistics import ChannelStatistics, Statistics, channel_statistics
from opflow.data.subsets import random_subsets

__all__ = [
    "Batches",
    "ChannelStatistics",
    "DataError",
    "FieldDataset",
    "ScatteringMeasurement",
    "Source",
    "Statistics",
    "TankMeasurement",
    "channel_statistics",
    "collate",
    "generate",
    "open_dataset",
    "random_subsets",
    "read_fresnel",
    "read_ktc",
    "read_nio",
    "read_openfwi",
    "write_dataset",
]
