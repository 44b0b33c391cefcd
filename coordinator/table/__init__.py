"""The reference table: apply batches of facts from events and reconciles, and everything that follows from them.

Everything here is SQL in the transaction of the caller. Queries for users are in lookup/.
"""
