"""Questions about blobs, repositories and references, as the refcount API and the commands ask them."""
