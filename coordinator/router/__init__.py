"""Configuration of nginx and Envoy for the router in front of the pods. Pure: nothing here starts a program."""
