"""Compare what a pod links in storage with what the table says.

Which parts are listed apart (plan.py), what of a listing is links (scan.py), one part: list, merge (domain/merge.py),
add what is missing, doubt what was not listed (compare.py), the look that settles a doubt (settle.py), and the job:
parts side by side, what was not listed at all, the end in one transaction (reconcile.py).
"""
