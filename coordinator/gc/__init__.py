"""Garbage collection: hide what nothing references, wait until everybody has reported, delete what the hide recorded.

facts.py: what is known of everything but single blobs, which domain/gc.py makes a policy of. plan.py: what that says of
each blob. hide.py: candidates -> hides. purge.py: hides that are due -> bytes given back. restore.py: hides of what is
needed again, and of what a job left -> served again. leftovers/run.py: what is left over beside blobs;
leftovers/links.py: the links among it. collect.py: the job, one page after another.
"""
