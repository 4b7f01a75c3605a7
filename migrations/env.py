"""Alembic's entry: runs migrations over the connection that `luthier.schema` hands it."""

from alembic import context

from luthier.tables import Base

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=Base.metadata,
    compare_type=True,
    user_module_prefix="",
    # SQLite cannot alter constraints in place; batch mode copies the table.
    render_as_batch=connection.dialect.name == "sqlite",
)
with context.begin_transaction():
    context.run_migrations()
