"""An MLPerf submission of the open division: its runs, its tree of files, and a check of it."""
