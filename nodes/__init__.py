"""What a user sees: one folder a family, `node.py` the schema, beside it the family's own mathematics."""
