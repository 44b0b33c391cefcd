"""`baleen demo`: two registries, a mount, an outage and a collection. Each step is checked against the bucket."""
