"""The embedded default: real services as child processes on loopback.

Route: Stack (supervisor) -> Guard + EmbeddedPostgres, EmbeddedS3, EmbeddedKafka -> ManagedProcess.
Not here: what is done with the services (bootstrap), and how a real one replaces an embedded one (settings).
"""
