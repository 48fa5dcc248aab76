"""Distribution packages as a source of fixes: which version runs, its source, fixes, build and shipped files."""
