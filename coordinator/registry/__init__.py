"""The client of a registry: transport, authentication, errors, and images to push."""
