"""Types of columns that mean the same on every engine."""

from sqlalchemy import String


def exact_text(length: int) -> String:
    """Text that is compared and sorted by code points; PostgreSQL would go by the locale of the database."""
    return String(length).with_variant(String(length, collation="C"), "postgresql")
