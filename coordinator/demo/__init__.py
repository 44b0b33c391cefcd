"""`baleen demo`: two registries, a mount, an outage and a collection, each step checked against the bucket."""
