"""From a registry's webhook to Kafka: authenticate, normalise, publish; and the topics themselves.

Invariant: a webhook is answered with 202 only after Kafka has acknowledged everything in it.
"""
