"""Baleen's HTTP API.

Not here: the logic behind the handlers (coordinator/db, coordinator/ingest, coordinator/domain).
"""
