"""In: bounce mails, the log of Postfix, webhooks. Each acknowledges its source after FeedbackService has."""
