"""Jobs: a queue in the database, how a worker takes one and does it, and leases of schedulers."""
