"""What all SQL needs: engine, connections, locks, migrations, the schema, and shapes of answers.

No statement about blobs or pods is here: SQL stands in the package of the rule that it serves.
"""
