"""The model card: `body.py` makes it, `metadata.py` its YAML head."""
