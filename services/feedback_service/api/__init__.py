"""The gRPC side of FeedbackService."""
