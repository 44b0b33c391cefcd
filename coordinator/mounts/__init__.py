"""Mounts across pods: a blob of one pod's repository becomes one of another's, and no bytes come from the client."""
