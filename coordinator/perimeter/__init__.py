"""Which repositories of the shared root belong to no registered pod.

Not here: the rule (domain/perimeter.py), what is blocked by it (gc/conditions.py), what is suggested (commands/).
"""
