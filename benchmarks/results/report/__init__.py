"""The report of a run: tables, plots, contact sheets, and a page to look at pictures side by side."""
