"""The use cases: submit, cancel, claim, heartbeat, record, finish, sweep.

Each function does its part inside the transaction of its caller and never commits; routes, tasks, the
supervisor and the dispatcher open transactions. Time and public ids are passed in.
"""
