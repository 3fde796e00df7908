"""Parts of a report that stand in files of their own."""
