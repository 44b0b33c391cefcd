"""Tokens of registries: keys, proof, signing, and the union of what several issuers grant.

Not here: what a right is (domain/access.py), tokens of Baleen's own API (tokens/table.py), how Baleen itself gets in
at a registry (registry/auth.py).
"""
