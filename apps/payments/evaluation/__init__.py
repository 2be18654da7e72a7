"""What a policy would have been worth on a log that another one left, with intervals, diagnostics and a verdict."""
