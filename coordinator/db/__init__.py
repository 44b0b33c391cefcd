"""The global reference table in PostgreSQL: models, migrations, batch apply, queries, check.

SQLAlchemy and psycopg are imported here and nowhere else.
"""
