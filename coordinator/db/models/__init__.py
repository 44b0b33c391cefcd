"""The schema: the reference table (table.py), pods' processes and jobs (truth.py), and garbage collection (gc.py)."""

from coordinator.db.models import gc, table, truth
from coordinator.db.models.base import Base

__all__ = ["Base", "gc", "table", "truth"]
