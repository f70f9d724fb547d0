"""What every service here needs and that knows nothing of campaigns: server, access, errors, logs, time.

Each module has one job and is imported by its own name; this package re-exports nothing.
"""
