"""The report of a run: tables, plots, contact sheets, and a page to look at images side by side."""
