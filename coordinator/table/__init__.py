"""The reference table: facts that events and reconciles report are applied to it in batches, with all that follows.

Everything here is SQL in the transaction of the caller. Who asks the table is in lookup/.
"""
