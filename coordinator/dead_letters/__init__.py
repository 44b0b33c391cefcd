"""Dead letters as they are shown, retried and discarded.

Not here: keeping them in the transaction of a batch (table/dead_letters.py).
"""
