"""Compare a pod's links in storage with the table, and make the table agree.

plan.py divides the pod's listing into parts, and scan.py finds the links in a listing. compare.py does one part: list,
merge (domain/merge.py), add missing links, and question those that were not listed. resolve.py resolves doubtful
removals by look-ups in storage. reconcile.py is the job: parts side by side, repositories that were not listed at all,
and the end in one transaction.
"""
