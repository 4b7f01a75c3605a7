"""Answers that last: events and logs of jobs, sent while they come."""
