"""What a run found, for people: tables, plots, and one self-contained HTML page."""
