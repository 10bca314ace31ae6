"""What actors of all kinds need: the parameter server, and what is done about errors, losses, memory and threads."""
