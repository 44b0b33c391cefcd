"""Count processes of registries as examined from their first event on, so that no scheduler visits them."""

from typing import Any

from psycopg import Connection


def examine_whatever_comes(connection: Connection[Any]) -> None:
    """Count each row of processes, present or future, as examined."""
    with connection.transaction():
        connection.execute(
            """
            CREATE OR REPLACE FUNCTION examine() RETURNS trigger LANGUAGE plpgsql
            AS $$ BEGIN NEW.examined_life := NEW.life; RETURN NEW; END $$
            """
        )
        connection.execute(
            """
            CREATE OR REPLACE TRIGGER examined BEFORE INSERT OR UPDATE ON processes
            FOR EACH ROW EXECUTE FUNCTION examine()
            """
        )
        connection.execute("UPDATE processes SET examined_life = life WHERE examined_life IS DISTINCT FROM life")
