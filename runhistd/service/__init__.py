"""The daemon as a service of the machine: what is installed, where, and how to undo it."""
