"""The tables: the reference table (table.py), and what is known of pods and their processes (truth.py)."""

from coordinator.db.models import table, truth
from coordinator.db.models.base import Base

__all__ = ["Base", "table", "truth"]
