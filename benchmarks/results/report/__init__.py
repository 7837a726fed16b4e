"""The report of a run: tables, plots, contact sheets, and a page that shows images side by side."""
