"""Pure decisions and tables: no framework, no I/O, no clock."""
