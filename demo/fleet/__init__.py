"""A whole fleet on one machine: a server, and devices in network namespaces with a vulnerable daemon each."""
