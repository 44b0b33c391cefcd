"""Leftovers of uploads, hides and probes in storage, and how a collection deletes them."""
