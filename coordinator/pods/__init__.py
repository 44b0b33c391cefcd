"""Pods: their registries, how they are spoken to and what is proved about them."""
