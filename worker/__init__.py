"""The side of Luthier that does the work: agents claim jobs, supervisors own child processes."""
