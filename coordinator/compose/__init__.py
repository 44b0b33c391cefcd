"""What each process is made of: the only place where adapters are built from settings."""
