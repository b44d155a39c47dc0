"""FETA-Friends: from the raw public files, or unsplit rows, to seven tasks."""
