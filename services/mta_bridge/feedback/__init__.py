"""Towards FeedbackService: what was reported, until it is acknowledged."""
