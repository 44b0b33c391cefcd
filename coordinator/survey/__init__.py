"""What deduplication would save, and how a registry store is adopted, from listings alone."""
