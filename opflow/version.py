"""The version of opflow, stated once: packaging, files and checkpoints read it here."""

__version__ = "0.1.0"
