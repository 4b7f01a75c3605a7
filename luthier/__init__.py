"""Luthier's domain and its storage, shared by the API and the workers; the command line and the client."""

__version__ = "0.1.0"
