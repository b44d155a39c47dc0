"""Hugging Face name tables, one file a family: data, no code."""
