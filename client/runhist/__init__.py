"""Record runs into, and read them from, the shared history that runhistd keeps on this machine."""

__version__ = "0.1.0"
