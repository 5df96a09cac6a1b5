"""What needs a Docker engine: the image, the compose stack, machines with nothing on them."""
