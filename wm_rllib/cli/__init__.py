"""The command line; the only part that reads arguments, writes run folders and prints."""
