"""One SQLite file: the journal of first answers, the place in the log, and what was parked."""
