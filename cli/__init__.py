"""The command line of logitcache: each module parses one command, calls the library once, and prints."""
