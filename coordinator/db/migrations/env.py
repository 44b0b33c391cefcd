"""How alembic runs here: on the connection that coordinator.db.migrate gives, inside its transaction."""

from alembic import context

from coordinator.db.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transaction_per_migration=False,
)
context.run_migrations()
