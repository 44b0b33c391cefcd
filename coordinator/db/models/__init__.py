"""The tables: the reference table (table.py), what is known of pods and their processes (truth.py), and garbage
collection's (gc.py).
"""

from coordinator.db.models import gc, table, truth
from coordinator.db.models.base import Base

__all__ = ["Base", "gc", "table", "truth"]
