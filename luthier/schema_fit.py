"""Whether a database fits the code that is about to work with it, whatever release made it.

A database of the same revision fits. One that a newer release has migrated still fits as long as that release
has only added to it: every table and column that this code knows is there, and whatever else is there may be
left out by an INSERT. So an agent of the release before goes on working, and a much older one says why not.
"""

from sqlalchemy import inspect
from sqlalchemy.engine import Inspector

from luthier import schema
from luthier.database import Database
from luthier.tables import Base


def misfit(database: Database) -> str | None:
    """Why this release cannot work with a database, and what to do; None where it can."""
    current, wanted = schema.current_revision(database), schema.wanted_revision()
    if current == wanted:
        return None
    if current is None or schema.is_known(current):
        return (
            f"The database has schema {current or 'none'} and this release needs {wanted}: "
            "run `luthier db upgrade`"
        )
    with database.engine.connect() as connection:
        lacks = _lacks(inspect(connection))
    if lacks is None:
        return None
    return (
        f"The database has schema {current} of a newer release, with which this one, made for {wanted}, "
        f"cannot work ({lacks}): install that release here"
    )


def _lacks(inspector: Inspector) -> str | None:
    """What stands between this code and a newer schema; None where nothing does."""
    there = set(inspector.get_table_names())
    for table in Base.metadata.sorted_tables:
        if table.name not in there:
            return f"there is no table {table.name}"
        columns = {column["name"]: column for column in inspector.get_columns(table.name)}
        if missing := [column.name for column in table.columns if column.name not in columns]:
            return f"{table.name} has no column {missing[0]}"
        for name, column in columns.items():
            is_optional = column["nullable"] or column["default"] is not None
            if name not in table.columns and not is_optional:
                return f"{table.name}.{name} must be given and is not known here"
    return None
