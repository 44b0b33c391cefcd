"""Show, retry and discard dead letters.

Not here: storing them in the transaction of a batch (table/dead_letters.py).
"""
