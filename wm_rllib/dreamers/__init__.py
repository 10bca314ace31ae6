"""Dreams: the actors that imagine, the driver's side of them, and the dream as an environment."""
