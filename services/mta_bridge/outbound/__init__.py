"""Out: RelayService, SMTP, and the asking for expiry."""
