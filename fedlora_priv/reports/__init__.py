"""What a run tells people: an HTML page, the terminal's tables, progress while it runs.

`summary` reads a report's headline; `html` and `terminal` show it; `markup`, `svg` and `charts` draw.
"""
