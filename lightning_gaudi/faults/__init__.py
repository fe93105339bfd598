"""Watching the ranks of a run: who is lost ends it for all, by name.

Each rank keeps a TCP connection to rank 0, with a thread at either end that sleeps until something
comes. When a process ends, however it ends, its system closes the connection, so that rank 0 knows
at once; that needs no help of the process, and no rank is taken for dead because it compiles for
minutes. A rank that raises says why first. Rank 0 collects for a moment (one rank's end makes the
others' collectives fail), picks the cause and tells everybody. A collective that then does not end
by itself, as on a card it may not, is ended with its process.
"""

from lightning_gaudi.faults.fault import add_to_message
from lightning_gaudi.faults.watch import FaultWatch, watch_ranks

__all__ = ["FaultWatch", "add_to_message", "watch_ranks"]
