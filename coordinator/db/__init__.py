"""The basis of all SQL: engine, connections, locks, migrations, the schema, and the shapes of responses.

Statements about blobs or pods are not here: SQL is in the package of the rule that it serves.
"""
