"""Status of the four resources, from what members tell and what the cluster shows. Pure."""
