"""The MTA side in front of a real mail server: SMTP out; bounce mails, MTA logs and webhooks in.

`domain` is pure; `store` keeps the journal and what can't be tied to a message, in one SQLite file; `feedback` reports
to FeedbackService; `outbound` takes messages over and speaks SMTP; `inbound` has the three ways in.
"""
