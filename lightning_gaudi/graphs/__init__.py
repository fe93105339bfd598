"""Capture and replay of HPU graphs, usable without Lightning."""

from lightning_gaudi.graphs.replay import GraphedForward
from lightning_gaudi.graphs.stats import GraphStats

__all__ = ["GraphStats", "GraphedForward"]
