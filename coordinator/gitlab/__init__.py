"""The metadata database of a GitLab Container Registry: what Baleen reads there, and what it may write."""
