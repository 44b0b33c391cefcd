"""What crosses a process boundary: notification envelopes in, Kafka records, lifecycle records out.

Lenient where registries write (`envelope`), strict where Baleen writes (`records`). JSON Schema is published
from the same types (`publish`), under `schemas/json/`.
"""
