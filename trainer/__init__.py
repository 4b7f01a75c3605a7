"""One run from spec to adapter, in a process of its own that knows no database, broker or HTTP."""
