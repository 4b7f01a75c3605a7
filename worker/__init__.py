"""The side of Luthier that does the work: agents that claim jobs, and supervisors that own child processes."""
