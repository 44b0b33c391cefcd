"""Mounts across pods: link a blob of one pod's repository in another pod, without an upload by the client."""
