"""Tokens of registries: keys, verification, signing, and the union of the grants of several issuers.

Not here: what a right is (domain/access.py), tokens of Baleen's own API (tokens/table.py), how Baleen itself logs in
at a registry (registry/auth.py).
"""
