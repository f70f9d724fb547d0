"""Pure: tokens, mails, SMTP replies, and the dialects of logs and webhooks. No I/O, no gRPC, no clock."""
