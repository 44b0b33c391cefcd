"""Garbage collection: hide unreferenced blobs, wait until every pod has reported, delete what the hide recorded.

conditions.py reads pods, watermarks and holds, of which domain/gc.py makes a policy. plan.py decides about each blob by
that policy. hide.py turns candidates into hides. purge.py deletes what due hides recorded. restore.py makes registries
serve hidden blobs again that are needed, or that a job left unfinished. leftovers/run.py deletes what is left over
beside blobs. collect.py is the job, one page after another.
"""
