"""From a registry's webhook to Kafka: authenticate, normalise, publish; and the topics themselves.

Invariant: a webhook is answered 202 only after Kafka has acknowledged everything that came of it.
"""
