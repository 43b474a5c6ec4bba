"""One external system per file; none of them decides anything."""
