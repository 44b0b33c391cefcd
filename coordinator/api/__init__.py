"""What Baleen serves over HTTP.

Not here: what the answers are made of (coordinator/db, coordinator/ingest, coordinator/domain).
"""
