"""Look-ups of blobs, repositories and references, for the API and the commands."""
