"""The only package that awaits: sockets, the committer, followers, and the life of the daemon's process."""
