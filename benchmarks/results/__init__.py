"""What a finished run says: tables, comparisons, statistics, report."""
