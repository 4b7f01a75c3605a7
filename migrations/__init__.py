"""Alembic migrations of Luthier's database, for SQLite and Postgres."""
