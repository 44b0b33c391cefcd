"""Jobs: a queue in the database, running them in a scheduler, and leases of schedulers."""
