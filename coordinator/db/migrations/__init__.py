"""What alembic runs; each step is in `versions`."""
