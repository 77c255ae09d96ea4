"""Mathematics and the loop: nothing here knows a server, a node or a graph."""
