"""Survey registry stores, for what deduplication would save, and adopt a pod's own store into the shared layer."""
