"""The formats that cross a process boundary: notification envelopes, Kafka records and lifecycle records.

Lenient where registries write (`envelope`), strict where Baleen writes (`records`). JSON Schema is published
from the same types (`publish`), under `schemas/json/`.
"""
