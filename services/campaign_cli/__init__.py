"""The `campaign` command: runs the system on one machine, sends to a list of recipients, shows what becomes of it."""
