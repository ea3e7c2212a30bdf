"""Other servers of the same network, each as its users write it by its own documentation; in an environment apart."""
