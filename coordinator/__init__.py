"""Baleen: one global reference table for the blobs of many container registries."""
