"""Kafka: how Baleen connects, its topics, writing and reading records, and what a log holds."""
