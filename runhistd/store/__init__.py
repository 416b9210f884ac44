"""The history on disk: synchronous, and the only package that knows SQL (`sql.py`, `schema.sql`)."""
