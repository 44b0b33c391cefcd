"""The embedded default: real services as child processes on loopback.

Route: Stack (supervisor) -> Guard + EmbeddedPostgres, EmbeddedS3, EmbeddedKafka -> ManagedProcess.
Not here: the use of the services (compose/), and replacing an embedded service by another (settings).
"""
