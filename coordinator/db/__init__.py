"""The basis of all SQL: engine, connections, locks, migrations, the schema, and what lists have in common.

Statements about blobs or pods are not here: SQL is in the package of the rule that it serves.
"""
